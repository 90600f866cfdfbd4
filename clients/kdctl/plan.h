// SPDX-License-Identifier: Apache-2.0
// kdctl plan: a roofline of what a model costs (the arithmetic is plan_cost.c, which knows nothing of kdctl). An operation takes as long as
// its products or its bytes, whichever is longer; a pass is the sum of its operations. Figures of a device are what it really reaches, not
// what its maker says: they are measured.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct architecture;

struct plan_device { double flops, bandwidth, disk; };  // FLOP/s, bytes/s; above 0; disk: where something is read from it

// read: of the bytes, from disk; packed: made of stored weights before the product, which reads them once more
struct plan_operator { const char *name; double flop, bytes, read, packed; };
#define PLAN_MAX_OPERATORS 8

// One pass of the whole model.
struct plan_pass {
	double rows;                     // positions computed
	double head_rows;                // of these, through the LM head
	double context;                  // positions before and at each row, on average: what its attention reads
	double keys;                     // keys and values read from memory, in all (each layer's)
	double weight_bytes;             // of one parameter as the device holds it
};

double plan_seconds(const struct plan_device *d, const struct plan_operator *o, size_t n);
// What the pass is made of, each over all layers; returns how many.
size_t plan_operators(const struct architecture *a, const struct plan_pass *p, struct plan_operator ret[PLAN_MAX_OPERATORS]);
double plan_flop(const struct plan_operator *o, size_t n);
// The FLOP/s with which the pass takes so long on a device of that bandwidth, so that what was measured is what is predicted; where its
// bytes alone take longer (the bandwidth is of steps, whose few rows cost more than their bytes), the FLOP over the seconds.
double plan_fit_flops(const struct plan_device *d, const struct plan_operator *o, size_t n, double seconds);
double plan_bytes(const struct plan_operator *o, size_t n);

// Sequences of `length` tokens, scored at all positions, `batch` of these to a pass; and one more token for each of n sequences.
struct plan_pass plan_scoring(double batch, double length, double weight_bytes);
struct plan_pass plan_generation(double sequences, double length, double weight_bytes);

// A teacher on the CPU under a memory cap (kdserved.conf(5), MEMORY): which matrices are unpacked, or read from disk, in each pass.
struct plan_cap {
	double bytes, element_bytes;     // of a parameter as products read it: 4, or 2 of bf16
	double stored_bytes;             // of all matrices as the model's file has them; 0: they cannot be kept so
	double batch, cache_tokens;
};
struct plan_stream {
	double needed_bytes;             // below which it is refused
	double stored_bytes;             // that are kept as stored
	double file_bytes;               // or lie on disk
	double layers;                   // share of the layers' matrices among them
	bool head;
	double hidden_batch;             // positions of a pass whose products take as long as reading their matrices
};
struct plan_stream plan_streaming(const struct architecture *a, const struct plan_cap *cap, const struct plan_device *d);
// What a pass reads or unpacks, entered into its operators.
void plan_read(const struct architecture *a, const struct plan_stream *s, double element_bytes, const struct plan_pass *p,
	       struct plan_operator *o, size_t n);

double plan_block_elements(const struct architecture *a);        // of the matrices that FP8 is for (kernels/backend.h)
double plan_active_parameters(const struct architecture *a);     // that a token's products go through: without tables, with the head
double plan_cache_bytes(const struct architecture *a, double positions);     // keys and values in float
double plan_work_bytes(const struct architecture *a, double batch);          // arrays of a pass in float, and one tile of the head
double plan_training_bytes(const struct architecture *a, double batch);      // values, gradients, AdamW, kept activations
// One row of a record with top_k ids: values of value_bytes each, codes of ids at about ln2(V / K) bits, the row's own 16 bytes.
double plan_row_bytes(double vocab_size, double top_k, double value_bytes);
