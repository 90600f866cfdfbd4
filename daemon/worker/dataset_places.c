// SPDX-License-Identifier: Apache-2.0
// Documents as sequences, and sequences as places. Best fit by decreasing length, as TRL's packing "bfd" (Ding et al., arXiv 2404.10830):
// it leaves next to nothing of the places empty and cuts no document that fits in one.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/worker/dataset_internal.h"

int dataset_append_document(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err)
{
	const struct dataset_options *o = &d->options;
	size_t room = o->sequence_length - o->n_prefix;
	for (size_t at = 0, take; at < n; at += take) {
		take = n - at < room ? n - at : room;
		if (n - at - take == 1 && o->n_prefix == 0 && take > 2)
			take--;                // else the last piece would be one token, without any that it follows
		if (take + o->n_prefix < 2)
			break;
		int r = dataset_add_tokens(d, o->prefix, o->n_prefix, err);
		r = r ? r : dataset_add_tokens(d, tokens + at, take, err);
		r = r ? r : dataset_add_item(d, o->n_prefix + (uint32_t)take, d->n_items, err);
		if (r)
			return r;
	}
	return 0;
}

int dataset_append_answer(struct dataset *d, const uint32_t *tokens, size_t n, size_t n_prompt, bool *ret_taken, struct error *err)
{
	const struct dataset_options *o = &d->options;
	size_t room = o->sequence_length - o->n_prefix, take = n < room ? n : room;
	*ret_taken = n_prompt + o->n_prefix > 0 && n_prompt < take;
	if (!*ret_taken)
		return 0;
	int r = dataset_add_tokens(d, o->prefix, o->n_prefix, err);
	r = r ? r : dataset_add_tokens(d, tokens, take, err);
	r = r ? r : dataset_add_item(d, o->n_prefix + (uint32_t)take, d->n_items, err);
	if (r == 0)
		d->items[d->n_items - 1].first = o->n_prefix + (uint32_t)n_prompt;
	return r;
}

// Documents stay in the order in which their tokens lie.
uint32_t dataset_first(const struct dataset *d, const struct sequence *s)
{
	size_t start = (size_t)(s->tokens - dataset_tokens(d));
	uint32_t low = 0, high = d->options.documents ? d->n_items : 0;
	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;
		if (d->items[middle].start <= start)
			low = middle;
		else
			high = middle;
	}
	return high && d->items[low].first > 1 ? d->items[low].first : 1;
}

// Places by how much room they have left: a stack for each amount, and a bit for each that is not empty.
struct rooms {
	uint32_t length;               // L
	uint32_t *top, *next;          // (L + 1) numbers of places, (n) the one below; UINT32_MAX = none
	uint64_t *filled;              // (L / 64 + 1)
};

static void rooms_push(struct rooms *r, uint32_t room, uint32_t place)
{
	r->next[place] = r->top[room];
	r->top[room] = place;
	r->filled[room / 64] |= UINT64_C(1) << room % 64;
}

// Takes a place with the least room that is enough. UINT32_MAX: there is none.
static uint32_t rooms_pop(struct rooms *r, uint32_t need, uint32_t *ret_room)
{
	uint32_t word = need / 64, n_words = r->length / 64 + 1;
	uint64_t bits = r->filled[word] & UINT64_MAX << need % 64;
	while (!bits && ++word < n_words)
		bits = r->filled[word];
	if (!bits)
		return UINT32_MAX;
	uint32_t room = *ret_room = word * 64 + (uint32_t)__builtin_ctzll(bits), place = r->top[room];
	r->top[room] = r->next[place];
	if (r->top[room] == UINT32_MAX)
		r->filled[room / 64] &= ~(UINT64_C(1) << room % 64);
	return place;
}

static bool rooms_init(struct rooms *r, uint32_t length, uint32_t n)
{
	*r = (struct rooms){length, malloc((length + (size_t)1) * sizeof *r->top), malloc(n * sizeof *r->next),
			    calloc(length / 64 + (size_t)1, sizeof *r->filled)};
	if (r->top)
		memset(r->top, 0xff, (length + (size_t)1) * sizeof *r->top);
	return r->top && r->next && r->filled;
}

static void rooms_done(struct rooms *r)
{
	free(r->top);
	free(r->next);
	free(r->filled);
}

struct longest { uint32_t n, item; uint64_t chance; };

static int longest_compare(const void *a, const void *b)
{
	const struct longest *x = a, *y = b;
	if (x->n != y->n)
		return x->n < y->n ? 1 : -1;
	return x->chance != y->chance ? (x->chance > y->chance) - (x->chance < y->chance) : (x->item > y->item) - (x->item < y->item);
}

// The items of `train` from the longest on.
static uint32_t *items_by_length(const struct dataset *d, uint32_t n)
{
	struct longest *all = reallocarray(NULL, n, sizeof *all);
	uint32_t *items = reallocarray(NULL, n, sizeof *items);
	for (uint32_t i = 0; all && i < n; i++)
		all[i] = (struct longest){d->items[d->train[i]].n, d->train[i], dataset_random(d->options.seed, UINT64_MAX, d->train[i])};
	if (all)
		qsort(all, n, sizeof *all, longest_compare);
	for (uint32_t i = 0; all && items && i < n; i++)
		items[i] = all[i].item;
	if (!all) {
		free(items);
		items = NULL;
	}
	free(all);
	return items;
}

// ret_place (n): of each of the items, in their order. Returns how many places there are.
static uint32_t fit_best(const struct dataset *d, const uint32_t *items, uint32_t n, struct rooms *rooms, uint32_t *ret_place)
{
	uint32_t n_places = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t need = d->items[items[i]].n, room, place = rooms_pop(rooms, need, &room);
		if (place == UINT32_MAX) {
			place = n_places++;
			room = rooms->length;
		}
		ret_place[i] = place;
		rooms_push(rooms, room - need, place);
	}
	return n_places;
}

static uint32_t fit_next(const struct dataset *d, const uint32_t *items, uint32_t n, uint32_t *ret_place)
{
	uint32_t n_places = 0, room = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t need = d->items[items[i]].n;
		if (n_places == 0 || need > room) {
			n_places++;
			room = d->options.sequence_length;
		}
		room -= need;
		ret_place[i] = n_places - 1;
	}
	return n_places;
}

// place (n) of each of the items -> the items of each place.
static int places_list(struct dataset *d, const uint32_t *items, const uint32_t *place, uint32_t n, struct error *err)
{
	d->place_starts = calloc((size_t)d->n_places + 2, sizeof *d->place_starts);
	d->placed = reallocarray(NULL, n, sizeof *d->placed);
	if (!d->place_starts || !d->placed)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %u sequences", n);
	uint32_t *end = d->place_starts + 1;   // while they are filled: where the next item of a place goes
	for (uint32_t i = 0; i < n; i++)
		end[place[i] + 1]++;
	for (uint32_t p = 0; p < d->n_places; p++) {
		d->per_place = end[p + 1] > d->per_place ? end[p + 1] : d->per_place;
		end[p + 1] += end[p];
	}
	for (uint32_t i = 0; i < n; i++)
		d->placed[end[place[i]]++] = items[i];
	return 0;
}

int dataset_fill_places(struct dataset *d, struct error *err)
{
	uint32_t n = (uint32_t)dataset_n_train(d);
	struct rooms rooms = {0};
	d->n_places = n;
	d->per_place = 1;
	if (!d->options.packed)
		return 0;
	uint32_t *longest = d->options.sequential ? NULL : items_by_length(d, n), *items = d->options.sequential ? d->train : longest;
	uint32_t *place = reallocarray(NULL, n, sizeof *place);
	int r = items && place && rooms_init(&rooms, d->options.sequence_length, n) ? 0 :
		error_set(err, ERROR_MEMORY, "corpus", "out of memory for %u sequences", n);
	if (r == 0) {
		d->n_places = d->options.sequential ? fit_next(d, items, n, place) : fit_best(d, items, n, &rooms, place);
		r = places_list(d, items, place, n, err);
	}
	rooms_done(&rooms);
	free(longest);
	free(place);
	return r;
}
