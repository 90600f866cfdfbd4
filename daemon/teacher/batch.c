// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/batch.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/cache.h"

#define CANDIDATES 8                       // items compared for the longest common prefix
#define MAX_LISTED 16                      // positions of items, in capacities: bounds the lists when nearly all is shared

int batch_new(uint32_t capacity, struct batch **ret_batch, struct error *err)
{
	struct batch *b = calloc(1, sizeof *b);
	size_t n = (size_t)capacity + 1;
	if (b) {
		b->capacity = capacity;
		for (b->n_buckets = 64; b->n_buckets < capacity; b->n_buckets *= 2)
			;
		b->items = calloc(n, sizeof *b->items);
		b->sequences = calloc(n, sizeof *b->sequences);
		b->tokens = calloc(n, sizeof *b->tokens);
		b->positions = calloc(n, sizeof *b->positions);
		b->starts = calloc(n, sizeof *b->starts);
		b->slot_starts = calloc(n, sizeof *b->slot_starts);
		b->row_slots = calloc(n, sizeof *b->row_slots);
		b->buckets = calloc(b->n_buckets, sizeof *b->buckets);
	}
	if (!b || !b->items || !b->sequences || !b->tokens || !b->positions || !b->starts || !b->slot_starts ||
		!b->row_slots || !b->buckets) {
		batch_free(b);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a batch of %u positions", capacity);
	}
	*ret_batch = b;
	return 0;
}

struct batch *batch_free(struct batch *b)
{
	if (!b)
		return NULL;
	free(b->items);
	free(b->sequences);
	free(b->tokens);
	free(b->positions);
	free(b->starts);
	free(b->slot_starts);
	free(b->rows);
	free(b->slots);
	free(b->row_slots);
	free(b->buckets);
	free(b);
	return NULL;
}

uint64_t batch_max_listed(uint32_t capacity, uint32_t max_tokens)
{
	return (uint64_t)MAX_LISTED * capacity + max_tokens;       // the first goes whatever its length
}

void batch_backlog_init(struct batch_backlog *backlog)
{
	backlog->first = NULL;
	backlog->end = &backlog->first;
}

void batch_backlog_append(struct batch_backlog *backlog, struct queue_item *item)
{
	item->next = NULL;
	*backlog->end = item;
	backlog->end = &item->next;
}

// Takes *place out of the list.
static struct queue_item *backlog_unlink(struct batch_backlog *backlog, struct queue_item **place)
{
	struct queue_item *item = *place;
	*place = item->next;
	if (backlog->end == &item->next)
		backlog->end = place;
	item->next = NULL;
	return item;
}

struct queue_item *batch_backlog_pop(struct batch_backlog *backlog)
{
	return backlog->first ? backlog_unlink(backlog, &backlog->first) : NULL;
}

void batch_clear(struct batch *b)
{
	b->n_rows = b->n_sequences = b->n_items = b->n_listed = b->n_generated = b->n_score_rows = b->n_shared = 0;
	memset(b->buckets, 0, b->n_buckets * sizeof *b->buckets);
}

uint32_t batch_room(const struct batch *b)
{
	return b->n_sequences < b->capacity ? b->capacity - b->n_rows : 0;
}

static bool grow(uint32_t **list, uint32_t *capacity, size_t n)
{
	size_t wanted = n + n / 2;
	if (n <= *capacity)
		return true;
	uint32_t *more = wanted <= UINT32_MAX ? realloc(*list, wanted * sizeof *more) : NULL;
	if (!more)
		return false;
	*list = more;
	*capacity = (uint32_t)wanted;
	return true;
}

// ---- scores

static uint32_t *bucket_of(const struct batch *b, const struct sequence *s)
{
	uint64_t h = 14695981039346656037u;        // FNV-1a
	for (uint32_t i = 0; i < BATCH_SHARE_MIN; i++)
		h = (h ^ s->tokens[i]) * 1099511628211u;
	return &b->buckets[(h ^ h >> 32) & (b->n_buckets - 1)];
}

static uint32_t common_prefix(const struct sequence *a, const struct sequence *b)
{
	uint32_t n = a->n_tokens < b->n_tokens ? a->n_tokens : b->n_tokens, i = 0;
	while (i < n && a->tokens[i] == b->tokens[i])
		i++;
	return i;
}

// The earlier item that begins most like s; *ret_shared: how many tokens long (0 = there is none that counts).
static const struct batch_item *longest_prefix(const struct batch *b, const struct sequence *s, uint32_t *ret_shared)
{
	const struct batch_item *best = NULL;
	uint32_t index = s->n_tokens >= BATCH_SHARE_MIN ? *bucket_of(b, s) : 0;
	*ret_shared = 0;
	for (int i = 0; index && i < CANDIDATES; i++) {
		const struct batch_item *other = &b->items[index - 1];
		uint32_t n = common_prefix(s, &other->item->sequence);
		if (n >= BATCH_SHARE_MIN && n > *ret_shared) {
			*ret_shared = n;
			best = other;
		}
		index = other->next;
	}
	return best;
}

static uint32_t append_rows(struct batch *b, const uint32_t *tokens, uint32_t first, uint32_t n)
{
	uint32_t row = b->n_rows;
	memcpy(b->tokens + row, tokens + first, n * sizeof *tokens);
	for (uint32_t i = 0; i < n; i++)
		b->positions[row + i] = first + i;
	b->n_rows += n;
	return row;
}

// Where an item would go: what it shares, and the rows left to compute.
struct place { const struct batch_item *prefix; uint32_t n_shared, n_rows; bool held; };

static struct place place_of(const struct batch *b, const struct request_item *item, bool share)
{
	struct place p = {0};
	if (share)
		p.prefix = longest_prefix(b, &item->sequence, &p.n_shared);
	p.n_rows = item->sequence.n_tokens - p.n_shared;
	return p;
}

static void append_score(struct batch *b, struct request_item *item, const struct place *p)
{
	const struct sequence *s = &item->sequence;
	struct batch_item *x = &b->items[b->n_items];
	*x = (struct batch_item){.item = item, .rows = b->n_listed};
	if (p->prefix)
		memcpy(b->rows + x->rows, b->rows + p->prefix->rows, p->n_shared * sizeof *b->rows);
	uint32_t row = append_rows(b, s->tokens, p->n_shared, p->n_rows);
	for (uint32_t i = 0; i < p->n_rows; i++)
		b->rows[x->rows + p->n_shared + i] = row + i;
	if (p->n_rows)
		b->sequences[b->n_sequences++] = (struct batch_sequence){.start = row, .n_rows = p->n_rows, .n_slots = s->n_tokens,
			.item = b->n_items, .held = p->held};
	b->n_listed += s->n_tokens;
	b->n_score_rows += p->n_rows;
	b->n_shared += p->n_shared;
	b->n_items++;
	if (s->n_tokens >= BATCH_SHARE_MIN) {
		uint32_t *bucket = bucket_of(b, s);
		x->next = *bucket;
		*bucket = b->n_items;
	}
}

// Whether the item may go there, by the terms; if so its slots are taken where they must be.
static bool take_place(struct batch *b, const struct request_item *item, const struct batch_terms *terms, uint32_t used, bool first,
		       struct place *p)
{
	uint32_t left = terms->budget > used ? terms->budget - used : 0;
	size_t listed = (size_t)b->n_listed + item->sequence.n_tokens;
	if (p->n_rows > batch_room(b) || (!first && (p->n_rows > left || listed > (size_t)MAX_LISTED * b->capacity)) ||
	    !grow(&b->rows, &b->rows_capacity, listed))
		return false;
	p->held = terms->slots && p->n_rows;
	return !p->held || cache_take(terms->slots, p->n_rows, b->row_slots + b->n_rows);
}

void batch_fill(struct batch *b, struct batch_backlog *backlog, const struct batch_terms *terms)
{
	uint32_t before = b->n_rows, passed = 0;
	struct queue_item **at = &backlog->first;
	while (*at && passed < BATCH_LOOKAHEAD && b->n_items < b->capacity && b->n_sequences < b->capacity &&
	       (terms->share || !b->n_items || b->n_rows - before < terms->budget)) {
		struct request_item *item = (struct request_item *)*at;
		struct place p = place_of(b, item, terms->share);
		bool first = terms->oldest && at == &backlog->first && !b->n_items;
		if (take_place(b, item, terms, b->n_rows - before, first, &p)) {
			append_score(b, (struct request_item *)backlog_unlink(backlog, at), &p);
		} else {
			at = &(*at)->next;
			passed++;
		}
	}
}

uint32_t batch_append(struct batch *b, const uint32_t *tokens, const uint32_t *slots, uint32_t first, uint32_t n)
{
	uint32_t row = append_rows(b, tokens, first, n);
	b->sequences[b->n_sequences++] = (struct batch_sequence){.start = row, .n_rows = n, .slots = slots, .n_slots = first + n};
	b->n_generated++;
	return row;
}

// ---- the layout

static void list_slots(struct batch *b)
{
	uint32_t n = 0;
	for (uint32_t s = 0; s < b->n_sequences; s++) {
		const struct batch_sequence *x = &b->sequences[s];
		const uint32_t *rows = b->rows + b->items[x->item].rows;
		b->slot_starts[s] = n;
		for (uint32_t i = 0; i < x->n_slots; i++)
			b->slots[n++] = x->slots ? x->slots[i] : b->row_slots[rows[i]];
	}
	b->slot_starts[b->n_sequences] = n;
}

static int take_slots(struct batch *b, struct cache *cache, struct error *err)
{
	size_t n = 0;
	for (uint32_t s = 0; s < b->n_sequences; s++) {
		struct batch_sequence *x = &b->sequences[s];
		n += x->n_slots;
		if (x->slots || x->held)
			continue;
		x->held = cache_take(cache, x->n_rows, b->row_slots + x->start);
		if (!x->held)
			return error_set(err, ERROR_INTERNAL, NULL, "no slots for %u rows", b->n_score_rows);
	}
	if (!grow(&b->slots, &b->slots_capacity, n))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a list of %zu slots", n);
	list_slots(b);
	return 0;
}

int batch_seal(struct batch *b, struct cache *cache, struct layout *ret_layout, struct error *err)
{
	for (uint32_t s = 0; s < b->n_sequences; s++)
		b->starts[s] = b->sequences[s].start;
	b->starts[b->n_sequences] = b->n_rows;
	*ret_layout = (struct layout){.n_positions = b->n_rows, .n_sequences = b->n_sequences, .tokens = b->tokens,
		.positions = b->positions, .starts = b->starts};
	if (!b->n_generated && !b->n_shared)
		return 0;
	int r = take_slots(b, cache, err);
	ret_layout->slot_starts = b->slot_starts;
	ret_layout->slots = b->slots;
	return r;
}

void batch_unseal(struct batch *b, struct cache *cache)
{
	for (uint32_t s = 0; s < b->n_sequences; s++) {
		struct batch_sequence *x = &b->sequences[s];
		if (x->held)
			cache_give(cache, x->n_rows, b->row_slots + x->start);
		x->held = false;
	}
}

bool batch_is_mixed(const struct batch *b)
{
	for (uint32_t i = 1; i < b->n_items; i++)
		if (b->items[i].item->request != b->items[0].item->request)
			return true;
	return false;
}
