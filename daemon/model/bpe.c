// SPDX-License-Identifier: Apache-2.0
// The merge queue is a heap of (rank, position), four children to a node: half the depth, and they share a cache line. An entry is
// stale when the pair at its position is no longer the one that was queued; symbols only grow, so comparing the rank is enough
// (where ranks are shared, a stale entry may stand for the pair now there: that one's own entry has the same key, so nothing changes).
#include "daemon/model/bpe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

#define NONE VOCABULARY_NONE

static uint64_t pair_key(uint32_t left, uint32_t right)
{
	return (uint64_t)left << 32 | right;
}

static struct merge_slot *slot_find(const struct bpe *bpe, uint64_t pair)
{
	for (size_t i = (size_t)((pair * 0x9e3779b97f4a7c15u) >> 20);; i++) {
		struct merge_slot *slot = &bpe->slots[i & bpe->mask];

		if (slot->pair == pair || slot->rank == NONE)
			return slot;
	}
}

int bpe_init(struct bpe *bpe, const struct vocabulary *v, uint64_t n_merges, struct error *err)
{
	size_t slots = 16;

	memset(bpe, 0, sizeof(*bpe));
	if (n_merges > VOCABULARY_MAX_IDS)
		return error_set(err, ERROR_TOO_LARGE, "merges", "%llu merges are over the limit of %u", (unsigned long long)n_merges,
				 VOCABULARY_MAX_IDS);
	while (slots < 2 * n_merges)
		slots *= 2;
	bpe->merges = calloc(n_merges + 1, sizeof(*bpe->merges));
	bpe->slots = malloc(slots * sizeof(*bpe->slots));
	if (!bpe->merges || !bpe->slots) {
		bpe_done(bpe);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %llu merges", (unsigned long long)n_merges);
	}
	for (size_t i = 0; i < slots; i++)
		bpe->slots[i] = (struct merge_slot){ UINT64_MAX, NONE };
	bpe->mask = slots - 1;
	bpe->capacity = (uint32_t)n_merges;
	for (unsigned byte = 0; byte < 256; byte++) {
		char spelling[4];

		bpe->byte_ids[byte] = vocabulary_find_spelling(v, spelling, alphabet_encode((const char[]){ (char)byte }, 1, spelling));
	}
	return 0;
}

void bpe_done(struct bpe *bpe)
{
	free(bpe->merges);
	free(bpe->slots);
	free(bpe->ranks);
	memset(bpe, 0, sizeof(*bpe));
}

static int merge_refuse(const struct bpe *bpe, const char *what, const char *text, size_t n, struct error *err)
{
	return error_set(err, ERROR_INVALID, "merges", "merge %u: %s \"%.*s\" is not in the vocabulary", bpe->n_merges, what,
			 (int)(n < 100 ? n : 100), text);
}

int bpe_append(struct bpe *bpe, const struct vocabulary *v, const char *left, size_t n_left, const char *right, size_t n_right,
	       struct error *err)
{
	uint32_t left_id = vocabulary_find_spelling(v, left, n_left), right_id = vocabulary_find_spelling(v, right, n_right), id;
	char *both;

	if (bpe->n_merges >= bpe->capacity)
		return error_set(err, ERROR_INVALID, "merges", "more merges than announced");
	if (left_id == NONE || right_id == NONE)
		return merge_refuse(bpe, "token", left_id == NONE ? left : right, left_id == NONE ? n_left : n_right, err);
	both = malloc(n_left + n_right + 1);
	if (!both)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for merge %u", bpe->n_merges);
	memcpy(both, left, n_left);
	memcpy(both + n_left, right, n_right);
	id = vocabulary_find_spelling(v, both, n_left + n_right);
	int ret = id == NONE ? merge_refuse(bpe, "result", both, n_left + n_right, err) : 0;

	free(both);
	if (ret)
		return ret;
	// A pair given twice keeps its last rank, as in the reference.
	*slot_find(bpe, pair_key(left_id, right_id)) = (struct merge_slot){ pair_key(left_id, right_id), bpe->n_merges };
	bpe->merges[bpe->n_merges++] = (struct merge){ left_id, right_id, id };
	return 0;
}

int bpe_append_line(struct bpe *bpe, const struct vocabulary *v, const char *line, size_t n, struct error *err)
{
	const char *space = memchr(line, ' ', n);
	size_t n_left = space ? (size_t)(space - line) : 0;

	if (!space || memchr(space + 1, ' ', n - n_left - 1))
		return error_set(err, ERROR_INVALID, "merges", "merge %u is not two tokens with a space between", bpe->n_merges);
	return bpe_append(bpe, v, line, n_left, space + 1, n - n_left - 1, err);
}

static void heap_sink(uint64_t *heap, size_t n, size_t i)
{
	uint64_t key = heap[i];

	for (size_t child; (child = 4 * i + 1) < n; i = child) {
		size_t end = child + 4 < n ? child + 4 : n;

		for (size_t other = child + 1; other < end; other++)
			if (heap[other] < heap[child])
				child = other;
		if (heap[child] >= key)
			break;
		heap[i] = heap[child];
	}
	heap[i] = key;
}

static uint64_t heap_pop(struct bpe_work *work)
{
	uint64_t top = work->heap[0];

	work->heap[0] = work->heap[--work->n_heap];
	if (work->n_heap)
		heap_sink(work->heap, work->n_heap, 0);
	return top;
}

static void heap_push(struct bpe_work *work, uint64_t key)
{
	size_t i = work->n_heap++;

	for (size_t parent; i > 0 && work->heap[parent = (i - 1) / 4] > key; i = parent)
		work->heap[i] = work->heap[parent];
	work->heap[i] = key;
}

static int work_reserve(struct bpe_work *work, size_t n)
{
	size_t capacity = work->capacity ? work->capacity : 64;

	if (n <= work->capacity)
		return 0;
	while (capacity < n)
		capacity *= 2;
	struct symbol *symbols = realloc(work->symbols, capacity * sizeof(*symbols));

	if (symbols)
		work->symbols = symbols;
	// Each of the n - 1 pairs is queued once; each of at most n - 1 merges queues two more and has taken one out.
	uint64_t *heap = realloc(work->heap, 2 * capacity * sizeof(*heap));

	if (heap)
		work->heap = heap;
	if (!symbols || !heap)
		return -ENOMEM;
	work->capacity = capacity;
	return 0;
}

void bpe_work_done(struct bpe_work *work)
{
	free(work->symbols);
	free(work->heap);
	memset(work, 0, sizeof(*work));
}

static uint32_t spelled_rank(const struct bpe *bpe, const char *bytes, size_t n)
{
	uint32_t id = n <= bpe->longest ? vocabulary_find(bpe->vocabulary, bytes, n, true) : NONE;

	return id == NONE ? NONE : bpe->ranks[id];
}

// Finds the merge of symbol i with its successor; false when there is none.
static bool symbol_rank(const struct bpe *bpe, struct symbol *symbols, uint32_t i, const char *bytes)
{
	struct symbol *s = &symbols[i];

	if (s->next == NONE)
		s->rank = NONE;
	else if (bpe->ranks)
		s->rank = spelled_rank(bpe, bytes + i, symbols[s->next].end - i);
	else
		s->rank = slot_find(bpe, pair_key(s->id, symbols[s->next].id))->rank;
	return s->rank != NONE;
}

int bpe_work_start(struct bpe_work *work, size_t n)
{
	work->first = work->last = NONE;
	return work_reserve(work, n);
}

void bpe_work_append(struct bpe_work *work, uint32_t begin, uint32_t end, uint32_t id)
{
	work->symbols[begin] = (struct symbol){ id, end, work->last, NONE, NONE };
	*(work->last == NONE ? &work->first : &work->symbols[work->last].next) = begin;
	work->last = begin;
}

// The first heap: every pair of symbols that can merge.
static void heap_start(const struct bpe *bpe, struct bpe_work *work, const char *bytes)
{
	work->n_heap = 0;
	for (uint32_t i = work->first; i != NONE; i = work->symbols[i].next)
		if (symbol_rank(bpe, work->symbols, i, bytes))
			work->heap[work->n_heap++] = (uint64_t)work->symbols[i].rank << 32 | i;
	for (size_t i = work->n_heap / 4 + 1; work->n_heap && i-- > 0;)
		heap_sink(work->heap, work->n_heap, i);
}

int bpe_encode(const struct bpe *bpe, struct bpe_work *work, const uint8_t *bytes, size_t n)
{
	if (bpe_work_start(work, n))
		return -ENOMEM;
	// A byte without a token is left out and its neighbours become adjacent, as in the reference (unk_token null).
	for (uint32_t i = 0; i < n; i++)
		if (bpe->byte_ids[bytes[i]] != NONE)
			bpe_work_append(work, i, i + 1, bpe->byte_ids[bytes[i]]);
	bpe_merge(bpe, work, (const char *)bytes);
	return 0;
}

void bpe_merge(const struct bpe *bpe, struct bpe_work *work, const char *bytes)
{
	struct symbol *symbols = work->symbols;

	heap_start(bpe, work, bytes);
	while (work->n_heap) {
		uint64_t top = heap_pop(work);
		uint32_t i = (uint32_t)top;
		struct symbol *s = &symbols[i];

		if (s->rank != top >> 32)
			continue;
		struct symbol *right = &symbols[s->next];

		s->id = bpe->ranks ? NONE : bpe->merges[s->rank].id;
		s->end = right->end;
		s->next = right->next;
		right->rank = NONE;    // makes its queued entry stale
		if (s->next != NONE)
			symbols[s->next].previous = i;
		if (symbol_rank(bpe, symbols, i, bytes))
			heap_push(work, (uint64_t)s->rank << 32 | i);
		if (s->previous != NONE && symbol_rank(bpe, symbols, s->previous, bytes))
			heap_push(work, (uint64_t)symbols[s->previous].rank << 32 | s->previous);
	}
}
