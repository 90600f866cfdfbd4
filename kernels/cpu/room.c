// SPDX-License-Identifier: Apache-2.0
// How much of a memory cap is left for matrices. Counted: the program itself, what stands beside the matrices (vectors, work arrays, head,
// cache, scratch) or is there while they are loaded (whichever is more: they are not there together), and, where matrices go to the shelf,
// its buffers.
#include <stdio.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"

#define MORE_BYTES (UINT64_C(48) << 20)      // the program grows by: code that oneDNN makes, threads' stacks, the doors
#define ROUNDING (UINT64_C(2) << 20)         // a large array, to huge pages
#define TILE_ROWS 64                         // rows are padded to tiles

// Sums that saturate: what does not fit 64 bits fits no memory.
static uint64_t sum(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t times(uint64_t a, uint64_t b)
{
	uint64_t product;
	return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

static uint64_t arrays(uint64_t n_values, uint64_t n_arrays)
{
	uint64_t bytes = times(n_values, sizeof(float)), more = times(n_arrays, ROUNDING);
	return sum(bytes, bytes < more ? bytes : more);
}

static uint64_t part(const struct backend_need *need, enum backend_part i)
{
	return arrays(sum(need->parts[i].n_real, need->parts[i].n_act), need->parts[i].n_arrays);
}

// Of all threads: rows of a product, padded, where they must be copied; of each: a block of a matrix that is packed, and what a sweep of
// the vocabulary takes.
static uint64_t scratch(const struct backend_options *o, int n_threads)
{
	uint64_t shared = times(sum(o->max_rows, TILE_ROWS), o->need.widest), block = times(BACKEND_MAX_PIECE_ROWS, o->need.widest);
	uint64_t sweep = times(3, sum(o->need.vocab_size, TILE_ROWS)), own = block > sweep ? block : sweep;
	return sum(arrays(shared, 1), times((uint64_t)n_threads, arrays(own, 1)));
}

struct room { uint64_t program, work, head, cache, beside; };

static struct room count(const struct backend_options *o, uint32_t head_rows, int n_threads)
{
	struct backend_count head = o->need.parts[BACKEND_PART_HEAD];
	uint64_t tile = times(head_rows, o->need.vocab_size);
	if (head.n_real > tile)      // counted for the device with the largest tiles
		head.n_real = tile;
	struct room r = {
		.program = sum(o->program_bytes, MORE_BYTES),
		.work = sum(part(&o->need, BACKEND_PART_WORK), scratch(o, n_threads)),
		.head = arrays(sum(head.n_real, head.n_act), head.n_arrays), .cache = part(&o->need, BACKEND_PART_CACHE)};
	uint64_t during = sum(r.work, sum(r.head, r.cache));
	// Rotation tables and gains are weights that are no matrices: they are not rounded, few are large.
	r.beside = sum(r.program, sum(times(o->need.parts[BACKEND_PART_WEIGHTS].n_real, sizeof(float)),
				      during > o->loading_bytes ? during : o->loading_bytes));
	return r;
}

static double mib(uint64_t bytes)
{
	return (double)bytes * 0x1p-20;
}

static int refuse(const struct backend_options *o, const struct room *r, uint64_t least, struct error *err)
{
	char cache[64] = "", last[64];
	snprintf(last, sizeof last, o->shelf ? "buffers %.0f" : "matrices %.0f", mib(least - r->beside));
	if (r->cache)
		snprintf(cache, sizeof cache, ", cache-tokens %.0f", mib(r->cache));
	return error_set(err, ERROR_TOO_LARGE, "memory", "memory = %.0f MiB is not enough: %s the teacher needs %.0f MiB "
			 "(program %.0f, batch-tokens %.0f, head %.0f%s, largest tensor while loading %.0f, %s)", mib(o->host_bytes),
			 o->shelf ? "with all matrices on disk" : "its matrices can only be in memory:", mib(least), mib(r->program),
			 mib(r->work), mib(r->head), cache, mib(o->loading_bytes), last);
}

int room_plan(const struct backend_options *o, uint32_t element_bytes, uint32_t head_rows, int n_threads, uint64_t *ret_room,
	      struct error *err)
{
	struct room r = count(o, head_rows, n_threads);
	const struct backend_count *weights = &o->need.parts[BACKEND_PART_WEIGHTS];
	uint64_t matrices = times(weights->n_weight, element_bytes), rounding = times(weights->n_arrays, ROUNDING);
	matrices = sum(sum(matrices, matrices / 64), rounding < matrices ? rounding : matrices);
	uint64_t least = sum(r.beside, o->shelf ? o->shelf->memory_bytes : matrices);
	*ret_room = UINT64_MAX;
	if (sum(r.beside, matrices) <= o->host_bytes)
		return 0;
	if (least > o->host_bytes)
		return refuse(o, &r, least, err);
	*ret_room = o->host_bytes - least;
	return 0;
}
