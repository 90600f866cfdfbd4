// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/openapi.h"

static const unsigned char document[] = {
#include "daemon/server/openapi_data.h"    // made by the Makefile: openapi.json as a list of bytes
};

const char *openapi_document(size_t *ret_n)
{
	*ret_n = sizeof document;
	return (const char *)document;
}
