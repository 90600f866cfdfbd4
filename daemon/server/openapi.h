// SPDX-License-Identifier: Apache-2.0
// The OpenAPI document of the HTTP door: openapi.json, compiled in.
#pragma once

#include <stddef.h>

const char *openapi_document(size_t *ret_n);       // JSON text
