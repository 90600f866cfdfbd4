// SPDX-License-Identifier: Apache-2.0
// How much of a memory cap is left for matrices, and where those lie that it is not enough for. Counted: the program itself, what stands
// beside the matrices (vectors, work arrays, head, cache, scratch) or is there while they are loaded (whichever is more: they are not there
// together), and, where matrices are stored, all of them and the window; where they go to the shelf, its buffers.
#include <stdio.h>

#include "common/error.h"
#include "common/saturate.h"
#include "kernels/cpu/cpu.h"

#define MORE_BYTES (UINT64_C(48) << 20)      // the program grows by: code that oneDNN makes, threads' stacks, the doors
#define ROUNDING (UINT64_C(2) << 20)         // a large array, to huge pages
#define TILE_ROWS 64                         // rows are padded to tiles
#define PAGE 4096u                           // stored matrices are rounded to
// Of stored matrices, packed: few enough that threads rarely wait for each other (smaller windows are slower on a busy machine), and what
// was packed is still in the outer cache when the product reads it.
#define WINDOW_BYTES ((size_t)16 << 20)

static uint64_t arrays(uint64_t n_values, uint64_t n_arrays)
{
	uint64_t bytes = size_times(n_values, sizeof(float)), more = size_times(n_arrays, ROUNDING);
	return size_plus(bytes, bytes < more ? bytes : more);
}

static uint64_t part(const struct backend_need *need, enum backend_part i)
{
	return arrays(size_plus(need->parts[i].n_real, need->parts[i].n_act), need->parts[i].n_arrays);
}

// Of all threads: rows of a product, padded, where they must be copied; of each: a block of a matrix that is packed, and what a sweep of
// the vocabulary takes.
static uint64_t scratch(const struct backend_options *o, int n_threads)
{
	uint64_t shared = size_times(size_plus(o->max_rows, TILE_ROWS), o->need.widest);
	uint64_t block = size_times(BACKEND_MAX_PIECE_ROWS, o->need.widest);
	uint64_t sweep = size_times(3, size_plus(o->need.vocab_size, TILE_ROWS)), own = block > sweep ? block : sweep;
	return size_plus(arrays(shared, 1), size_times((uint64_t)n_threads, arrays(own, 1)));
}

struct room { uint64_t program, work, head, cache, beside; };

static struct room count(const struct backend_options *o, uint32_t head_rows, int n_threads)
{
	struct backend_count head = o->need.parts[BACKEND_PART_HEAD];
	uint64_t tile = size_times(head_rows, o->need.vocab_size);
	if (head.n_real > tile)      // counted for the device with the largest tiles
		head.n_real = tile;
	struct room r = {
		.program = size_plus(o->program_bytes, MORE_BYTES),
		.work = size_plus(part(&o->need, BACKEND_PART_WORK), scratch(o, n_threads)),
		.head = arrays(size_plus(head.n_real, head.n_act), head.n_arrays), .cache = part(&o->need, BACKEND_PART_CACHE)};
	uint64_t during = size_plus(r.work, size_plus(r.head, r.cache));
	// Rotation tables and gains are weights that are no matrices: they are not rounded, few are large.
	r.beside = size_plus(r.program, size_plus(size_times(o->need.parts[BACKEND_PART_WEIGHTS].n_real, sizeof(float)),
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

// Whether all matrices have room as stored.
static bool plan_stored(const struct backend_options *o, const struct room *r, struct room_plan *ret_plan)
{
	const struct backend_count *weights = &o->need.parts[BACKEND_PART_WEIGHTS];
	size_t piece = backend_piece_bytes(o->need.widest), window = piece > WINDOW_BYTES ? piece : WINDOW_BYTES;
	uint64_t stored = size_plus(weights->stored_bytes, size_times(weights->n_arrays, PAGE));
	uint64_t all = size_plus(size_plus(r->beside, window), stored);
	if (!weights->stored_bytes || all > o->host_bytes)
		return false;
	*ret_plan = (struct room_plan){.room = o->host_bytes - all, .window_bytes = window};
	return true;
}

int room_plan(const struct backend_options *o, uint32_t element_bytes, uint32_t head_rows, int n_threads, struct room_plan *ret_plan,
	      struct error *err)
{
	struct room r = count(o, head_rows, n_threads);
	const struct backend_count *weights = &o->need.parts[BACKEND_PART_WEIGHTS];
	uint64_t matrices = size_times(weights->n_weight, element_bytes), rounding = size_times(weights->n_arrays, ROUNDING);
	matrices = size_plus(size_plus(matrices, matrices / 64), rounding < matrices ? rounding : matrices);
	uint64_t least = size_plus(r.beside, o->shelf ? o->shelf->memory_bytes : matrices);
	*ret_plan = (struct room_plan){.room = UINT64_MAX};
	if (size_plus(r.beside, matrices) <= o->host_bytes || plan_stored(o, &r, ret_plan))
		return 0;
	if (least > o->host_bytes)
		return refuse(o, &r, least, err);
	ret_plan->room = o->host_bytes - least;
	return 0;
}
