// SPDX-License-Identifier: Apache-2.0
// Shared by the readers of GGUF metadata only (config_gguf.c, config_gguf_rope.c).
#pragma once

#include "daemon/model/config.h"
#include "daemon/model/gguf.h"

struct config_source {
	const struct gguf *file;
	const char *family;
	struct error *err;
};

const char *config_gguf_key(const struct config_source *s, const char *key, char ret[128]);    // "<family>.<key>"
int config_gguf_missing(const struct config_source *s, const char *key);
int config_gguf_size(const struct config_source *s, const char *key, uint32_t fallback, uint32_t *ret);    // fallback 0: it must be there
int config_gguf_optional(const struct config_source *s, const char *key, double *value);       // absent: *value stays
int config_gguf_rope(const struct config_source *s, struct architecture *a);
