// SPDX-License-Identifier: Apache-2.0
// A GGUF file seen through Hugging Face names.
#pragma once

#include "daemon/model/config.h"
#include "daemon/model/gguf.h"

#define GGUF_SOURCE_NAME 64

// "model.layers.0.mlp.up_proj.weight" -> "blk.0.ffn_up.weight"; -ENOENT for a name GGUF has no word for.
int gguf_source_name(const struct architecture *a, const char *name, char ret_name[GGUF_SOURCE_NAME]);
// Whether it names a matrix of one expert, all of whose stand in one tensor of three dimensions: which.
bool gguf_source_expert(const char *name, uint32_t *ret_expert);
// Without reading: the tensor, of an expert its part of it. -ENOENT when absent; the caller has checked nothing.
int gguf_source_find(const struct gguf *file, const struct architecture *a, const char *name, struct tensor *ret_tensor);
// By Hugging Face name; the rows of q and k come in Hugging Face order. The caller frees tensor->data. -ENOENT when absent.
int gguf_source_read(const struct gguf *file, const struct architecture *a, const char *name, struct tensor *ret_tensor, struct error *err);
