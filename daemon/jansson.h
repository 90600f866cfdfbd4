// SPDX-License-Identifier: Apache-2.0
// JSON text read or made by jansson, or not at all. jansson 2.14 overlooks allocations that fail while it collects a string, a number or a
// whole text: that then lacks characters, and nobody is told. And where it does tell, it calls a lack of memory bad text. So nobody else
// calls json_load or json_dumps.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

// As json_loadb() and json_load_file(); *ret_starved (may be NULL) says whether NULL means that there was no memory, and so does the text
// of *ret_why (may be NULL).
json_t *jansson_load(const char *text, size_t n, size_t flags, json_error_t *ret_why, bool *ret_starved);
json_t *jansson_load_file(const char *path, size_t flags, json_error_t *ret_why, bool *ret_starved);
// As json_dumps(), which loses allocations too: the whole text, or NULL. free() it.
char *jansson_dump(const json_t *j, size_t flags);
