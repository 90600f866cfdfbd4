// SPDX-License-Identifier: Apache-2.0
// The notes about teachers (common/provenance.h) in exported files: a line of JSON of their own before the records, or an object by
// fingerprint in a file's metadata. Knows nothing of kdctl.
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct buffer;
struct error;
struct provenance;

void note_encode_line(struct buffer *b, const struct provenance *p);       // with the newline
void note_encode_list(struct buffer *b, const struct provenance *notes, size_t n);
// Hostile text. What does not make the fingerprint that it names is refused.
bool note_is_line(const char *text, size_t n);     // a NUL behind it
int note_decode_line(const char *text, size_t n, struct provenance *ret, struct error *err);
// The "__metadata__" of a safetensors file; the caller frees. Without notes *ret_n is 0. Notes of older files do not say the codec: where
// today's does not make their fingerprint they are left out.
int note_decode_metadata(const char *text, size_t n, struct provenance **ret_notes, size_t *ret_n, struct error *err);
