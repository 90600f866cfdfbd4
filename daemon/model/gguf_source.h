// SPDX-License-Identifier: Apache-2.0
// A GGUF file seen through Hugging Face names.
#pragma once

#include "daemon/model/config.h"
#include "daemon/model/gguf.h"

#define GGUF_SOURCE_NAME 64

// "model.layers.0.mlp.up_proj.weight" -> "blk.0.ffn_up.weight"; -ENOENT for a name GGUF has no word for.
int gguf_source_name(const struct architecture *a, const char *name, char ret_name[GGUF_SOURCE_NAME]);
// By Hugging Face name; the rows of q and k come in Hugging Face order. The caller frees tensor->data. -ENOENT when absent.
int gguf_source_read(const struct gguf *file, const struct architecture *a, const char *name, struct tensor *ret_tensor, struct error *err);
