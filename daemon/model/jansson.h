// SPDX-License-Identifier: Apache-2.0
// JSON text read by jansson, or not at all. jansson 2.14 overlooks allocations that fail while it collects a string or a number: the value
// then lacks characters, and nobody is told.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

// As json_loadb(); *ret_starved (may be NULL) says whether NULL means that there was no memory.
json_t *jansson_load(const char *text, size_t n, size_t flags, json_error_t *ret_why, bool *ret_starved);
