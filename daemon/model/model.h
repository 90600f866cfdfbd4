// SPDX-License-Identifier: Apache-2.0
// Opens a model wherever it lies (a GGUF file or a Hugging Face directory): architecture, tokenizer, weights on a backend, fingerprint.
#pragma once

#include "common/sequence.h"
#include "daemon/model/config.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/weights.h"

struct error;
struct model_file;

int model_file_open(const char *path, struct model_file **ret_file, struct error *err);
struct model_file *model_file_close(struct model_file *file);
const struct architecture *model_file_architecture(const struct model_file *file);
struct tensor_source model_file_source(struct model_file *file);
// Bytes of host memory that reading its tensors one after the other takes at most (those that become one matrix together).
uint64_t model_file_loading_bytes(const struct model_file *file);
uint64_t model_file_stored_bytes(struct model_file *file);      // of all its matrices, as it has them
int model_file_tokenizer(struct model_file *file, struct tokenizer **ret_tokenizer, struct error *err);
// Rows of a matrix by their numbers (repeats are fine), or a vector as its row 0, as float: (n, columns). `name` is Hugging Face's; -ENOENT
// when there is none. Safe from any thread while nobody closes the file.
int model_file_read_rows(const struct model_file *file, const char *name, const uint32_t *rows, uint32_t n, float *ret_values,
			 struct error *err);
const char *model_file_dtype(const struct model_file *file);        // of most weight bytes: "Q4_1", "BF16"
// SHA-256 over every tensor (canonical name order: name, dtype, dims, bytes) and the architecture: the same for the same weights.
int model_file_weights_id(struct model_file *file, struct content_id *ret_id, struct error *err);
