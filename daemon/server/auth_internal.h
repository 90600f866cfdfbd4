// SPDX-License-Identifier: Apache-2.0
// Shared by auth.c (who is who) and auth_file.c (the file of tokens).
#pragma once

#include <stddef.h>

struct bearer;
struct error;

// All tokens of a file, as many as AUTH_MAX_TOKENS; names and digests differ. A file that others may write is refused. free() them.
int auth_file_read(const char *path, struct bearer **ret_tokens, size_t *ret_n, struct error *err);
// The same from memory; `source` names it in errors.
int auth_file_decode(const char *text, size_t n, const char *source, struct bearer **ret_tokens, size_t *ret_n, struct error *err);
