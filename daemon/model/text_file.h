// SPDX-License-Identifier: Apache-2.0
// A UTF-8 text file as tokens, a piece at a time and never whole in memory. Pieces end at line ends by a fixed rule, so that every reader
// comes to the same tokens.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct text_file;
struct tokenizer;

// specials: whether special tokens written in the text become their ids. The tokenizer must outlive the file.
int text_file_open(const char *path, const struct tokenizer *t, bool specials, struct text_file **ret, struct error *err);
struct text_file *text_file_close(struct text_file *f);        // returns NULL; NULL is fine
// The next piece's tokens, the file's own until the next call; after the text's last piece comes one that is the end-of-text token alone,
// where the tokenizer has one. -ENODATA at the end (err is not set).
int text_file_next(struct text_file *f, const uint32_t **ret_tokens, size_t *ret_n, struct error *err);
uint64_t text_file_position(const struct text_file *f);        // bytes whose tokens were given out
