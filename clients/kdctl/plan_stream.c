// SPDX-License-Identifier: Apache-2.0
// What a memory cap leaves as stored, or on disk, and what unpacking or reading it costs: daemon/model/weights.c and kernels/cpu/room.c
// decide the same of a real server, which knows its own size better.
#include <math.h>

#include "clients/kdctl/plan.h"
#include "daemon/model/config.h"

#define MIB 0x1p20
#define PROGRAM (80 * MIB)        // code, tokenizer, what oneDNN makes
#define BUFFERS (64 * MIB)         // of pieces read ahead, or a sixteenth of the cap
#define WINDOW (16 * MIB)          // stored matrices are unpacked to
#define TILE 256.0                // rows of logits held at once, for which the head is read once
#define FLOAT 4.0

// Elements of a layer's matrices; of a mixture with so many experts.
static double layer_elements(const struct architecture *a, double n_experts)
{
	double heads = (double)a->n_heads * a->head_size, width = heads + 2.0 * a->n_kv_heads * a->head_size;
	double ffn = ((double)architecture_up_width(a) + a->ffn_width) * a->width;
	return (width + heads) * a->width + (a->n_experts ? n_experts * ffn + (double)a->n_experts * a->width : ffn);
}

double plan_block_elements(const struct architecture *a)
{
	return a->n_layers * (layer_elements(a, a->n_experts) - (double)a->n_experts * a->width);
}

struct plan_stream plan_streaming(const struct architecture *a, const struct plan_cap *cap, const struct plan_device *d)
{
	double layers = cap->element_bytes * a->n_layers * layer_elements(a, a->n_experts);
	double head = cap->element_bytes * a->vocab_size * a->width, embedding = a->tied_head ? 0 : head;
	double beside = PROGRAM + plan_work_bytes(a, cap->batch) + plan_cache_bytes(a, cap->cache_tokens) + FLOAT * TILE * a->vocab_size;
	struct plan_stream s = {.needed_bytes = beside + fmin(BUFFERS, cap->bytes / 16),
				.hidden_batch = cap->element_bytes / 2 * d->flops / d->disk};
	if (beside + layers + head + embedding <= cap->bytes)
		return s;
	bool stored = cap->stored_bytes > 0 && beside + WINDOW + cap->stored_bytes <= cap->bytes;
	// Of its packed bytes a stored matrix takes a share from the start: packing it takes the rest.
	double share = stored ? fmin(1, cap->stored_bytes / (layers + head + embedding)) : 0;
	double room = stored ? cap->bytes - beside - WINDOW - cap->stored_bytes : fmax(0, cap->bytes - s.needed_bytes);
	s.head = head * (1 - share) > room;
	room -= s.head ? 0 : head * (1 - share);
	s.layers = layers * (1 - share) > room ? 1 - room / (layers * (1 - share)) : 0;
	double apart = s.layers * layers + (s.head ? head : 0) + embedding;
	*(stored ? &s.stored_bytes : &s.file_bytes) = stored ? apart * share : apart;
	return s;
}

// The embedding's pieces that hold a token are not counted: next to the layers they are few.
void plan_read(const struct architecture *a, const struct plan_stream *s, double element_bytes, const struct plan_pass *p,
	       struct plan_operator *o, size_t n)
{
	double heads = (double)a->n_heads * a->head_size, width = heads + 2.0 * a->n_kv_heads * a->head_size;
	double used = a->n_experts ? fmin(a->n_experts, p->rows * a->n_experts_used) : 0, layers = s->layers * a->n_layers * element_bytes;
	if (n < 5)
		return;
	double bytes[] = {layers * width * a->width, 0, layers * heads * a->width,
			  layers * (layer_elements(a, used) - (width + heads) * a->width),
			  s->head ? ceil(p->head_rows / TILE) * element_bytes * a->vocab_size * a->width : 0};
	for (int i = 0; i < 5; i++)
		*(s->stored_bytes > 0 ? &o[i].packed : &o[i].read) = bytes[i];
}
