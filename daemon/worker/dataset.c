// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/dataset_internal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "common/error.h"
#include "daemon/model/text_file.h"

int dataset_new(const struct dataset_options *options, struct dataset **ret, struct error *err)
{
	struct dataset *d = calloc(1, sizeof *d);
	if (!d)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	int r = packing_init(&d->packing, options->sequence_length, options->prefix, options->n_prefix, err);
	if (r) {
		dataset_free(d);
		return r;
	}
	d->options = *options;
	d->options.prefix = d->packing.prefix;
	d->epoch = UINT64_MAX;
	*ret = d;
	return 0;
}

struct dataset *dataset_free(struct dataset *d)
{
	if (d) {
		packing_done(&d->packing);
		free(d->tokens);
		free(d->items);
		free(d->train);
		free(d->held_out);
		free(d->order);
		free(d->place_starts);
		free(d->placed);
		free(d->domain_places);
		free(d->domain_order);
		free(d);
	}
	return NULL;
}

int dataset_append(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err)
{
	return packing_append(&d->packing, tokens, n, err);
}

int dataset_append_file(struct dataset *d, const struct tokenizer *t, bool specials, const char *path, struct error *err)
{
	struct text_file *f = NULL;
	const uint32_t *tokens;
	size_t n;
	int r = text_file_open(path, t, specials, &f, err);
	while (r == 0 && (r = text_file_next(f, &tokens, &n, err)) == 0)
		r = packing_append(&d->packing, tokens, n, err);
	text_file_close(f);
	return r == -ENODATA ? 0 : r;
}

int dataset_add_tokens(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err)
{
	size_t need;
	if (n == 0)
		return 0;              // without a first token of the tokenizer's there is no array either
	if (__builtin_add_overflow(d->n_tokens, n, &need) || need > UINT32_MAX)
		return error_set(err, ERROR_TOO_LARGE, "corpus", "more than %u tokens", UINT32_MAX);
	if (need > d->capacity) {
		size_t capacity = d->capacity ? d->capacity : 1 << 16;
		while (capacity < need)
			capacity *= 2;         // need < 2^32: cannot wrap
		uint32_t *more = reallocarray(d->tokens, capacity, sizeof *more);
		if (!more)
			return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %zu tokens", capacity);
		d->tokens = more;
		d->capacity = capacity;
	}
	memcpy(d->tokens + d->n_tokens, tokens, n * sizeof *tokens);
	d->n_tokens = need;
	return 0;
}

int dataset_add_item(struct dataset *d, uint32_t n, uint32_t place, struct error *err)
{
	uint32_t start = d->n_items ? d->items[d->n_items - 1].start + d->items[d->n_items - 1].n : 0;
	if (d->n_items == d->item_capacity) {
		uint32_t capacity = d->item_capacity ? 2 * d->item_capacity : 1024;      // items have two tokens at least: fewer than 2^31
		struct dataset_item *items = reallocarray(d->items, capacity, sizeof *items);
		if (!items)
			return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %u sequences", capacity);
		d->items = items;
		d->item_capacity = capacity;
	}
	d->items[d->n_items++] = (struct dataset_item){.start = start, .n = n, .place = place};
	return 0;
}

int dataset_append_sequence(struct dataset *d, const uint32_t *tokens, uint32_t n, struct error *err)
{
	if (n < 2 || n > d->options.sequence_length)
		return error_set(err, ERROR_INVALID, "sequence-length", "a sequence of %u tokens, expected 2 to %u", n,
			d->options.sequence_length);
	int r = dataset_add_tokens(d, tokens, n, err);
	return r ? r : dataset_add_item(d, n, d->n_items, err);
}

const uint32_t *dataset_tokens(const struct dataset *d)
{
	return d->tokens ? d->tokens : d->packing.tokens;
}

struct sequence dataset_at(const struct dataset *d, uint32_t i)
{
	const struct dataset_item *item = &d->items[i];
	return (struct sequence){(uint32_t *)(uintptr_t)(dataset_tokens(d) + item->start), item->n};
}

struct listed {
	struct content_id id;
	struct dataset_item item;
};

static int listed_compare(const void *a, const void *b)
{
	const struct listed *x = a, *y = b;
	int order = memcmp(&x->id, &y->id, sizeof x->id);
	return order ? order : (x->item.place > y->item.place) - (x->item.place < y->item.place);
}

// Whole sequences in the order of their ids; of equal ones the first that came.
static int items_sort(struct dataset *d, struct error *err)
{
	uint32_t n = 0;
	struct listed *all = reallocarray(NULL, d->n_items, sizeof *all);
	if (!all)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %u sequences", d->n_items);
	for (uint32_t i = 0; i < d->n_items; i++) {
		struct sequence s = dataset_at(d, i);
		all[i] = (struct listed){sequence_id(&s), d->items[i]};
	}
	qsort(all, d->n_items, sizeof *all, listed_compare);
	for (uint32_t i = 0; i < d->n_items; i++)
		if (i == 0 || memcmp(&all[i].id, &all[i - 1].id, sizeof all->id) != 0)
			d->items[n++] = all[i].item;
	d->n_items = n;
	free(all);
	return 0;
}

int dataset_list(struct dataset *d, struct error *err)
{
	uint32_t L = d->options.sequence_length;
	int r = 0;
	if (d->listed)
		return 0;
	if (d->n_items || d->options.documents) {
		r = d->options.documents ? 0 : items_sort(d, err);
	} else {
		for (uint32_t i = 0; r == 0 && i < d->packing.n_tokens / L; i++)
			r = dataset_add_item(d, L, i, err);
	}
	d->listed = r == 0;
	return r;
}

uint32_t dataset_n_sequences(const struct dataset *d)
{
	return d->n_items;
}

void dataset_keep(struct dataset *d, const bool *keep)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < d->n_items; i++)
		if (keep[i])
			d->items[n++] = d->items[i];
	d->n_items = n;
}

static uint64_t held_out_count(const struct dataset *d)
{
	if (d->options.held_out <= 0)
		return 0;
	uint64_t n = (uint64_t)llround(d->options.held_out * (double)d->n_items);
	n = n < d->options.held_out_max ? n : d->options.held_out_max;
	return n ? n : 1;
}

static int place_compare(const void *a, const void *b, void *items)
{
	const struct dataset_item *of = items;
	uint32_t x = of[*(const uint32_t *)a].place, y = of[*(const uint32_t *)b].place;
	return (x > y) - (x < y);
}

static int too_little(const struct dataset *d, uint64_t held, struct error *err)
{
	if (d->tokens || d->options.documents)
		return error_set(err, ERROR_INVALID, "corpus", "%u sequences, %llu of them held out: too little to train on", d->n_items,
				 (unsigned long long)held);
	return error_set(err, ERROR_INVALID, "corpus", "%zu tokens make %u sequences of %u, %llu of them held out: too little to train on",
			 d->packing.n_tokens, d->n_items, d->options.sequence_length, (unsigned long long)held);
}

int dataset_split(struct dataset *d, struct error *err)
{
	int r = dataset_list(d, err);
	if (r)
		return r;
	uint64_t n = d->n_items, held = d->n_held_out = held_out_count(d);
	if (n <= held)
		return too_little(d, held, err);
	d->train = malloc((n - held) * sizeof *d->train);
	d->order = malloc((n - held) * sizeof *d->order);
	d->held_out = malloc((held + 1) * sizeof *d->held_out);
	if (!d->train || !d->order || !d->held_out)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	uint64_t n_train = 0, n_held = 0;
	for (uint64_t i = 0; i < n; i++) {     // n < 2^32 and held <= 65536: the products fit
		if ((i + 1) * held / n > i * held / n)
			d->held_out[n_held++] = (uint32_t)i;
		else
			d->train[n_train++] = (uint32_t)i;
	}
	if (d->options.sequential)
		qsort_r(d->train, n_train, sizeof *d->train, place_compare, d->items);
	r = dataset_fill_places(d, err);
	return r ? r : dataset_fill_domains(d, err);
}

uint64_t dataset_n_train(const struct dataset *d)
{
	return d->n_items - d->n_held_out;
}

uint64_t dataset_n_held_out(const struct dataset *d)
{
	return d->n_held_out;
}

// A counter-based generator (splitmix64's finaliser over the parts): no state to keep, so nothing to save in a checkpoint.
uint64_t dataset_random(uint64_t seed, uint64_t epoch, uint64_t i)
{
	uint64_t parts[3] = {seed, epoch, i}, x = 0;
	for (int k = 0; k < 3; k++) {
		x += parts[k] + UINT64_C(0x9e3779b97f4a7c15);
		x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
		x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
		x ^= x >> 31;
	}
	return x;
}

static void order_fill(struct dataset *d, uint64_t epoch)
{
	uint64_t n = d->n_places;
	for (uint64_t i = 0; i < n; i++)
		d->order[i] = (uint32_t)i;
	d->epoch = epoch;
	if (d->options.sequential)
		return;
	for (uint64_t i = n - 1; i > 0; i--) {         // Fisher-Yates
		uint64_t j = (uint64_t)((unsigned __int128)dataset_random(d->options.seed, epoch, i) * (i + 1) >> 64);
		uint32_t swap = d->order[i];
		d->order[i] = d->order[j];
		d->order[j] = swap;
	}
}

static uint32_t place_at(struct dataset *d, uint64_t position)
{
	uint64_t n = d->n_places;
	if (d->drawn_from.n)
		return dataset_domain_place(d, position);
	if (d->epoch != position / n && !(d->options.sequential && d->epoch != UINT64_MAX))
		order_fill(d, position / n);
	return d->order[position % n];
}

struct sequence dataset_train_at(struct dataset *d, uint64_t position)
{
	uint32_t place = place_at(d, position);
	return dataset_at(d, d->placed ? d->placed[d->place_starts[place]] : d->train[place]);
}

uint32_t dataset_places_at(struct dataset *d, uint64_t position, uint32_t n, struct sequence *ret)
{
	uint32_t n_sequences = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t place = place_at(d, position + i);
		if (!d->placed)
			ret[n_sequences++] = dataset_at(d, d->train[place]);
		for (uint32_t k = d->placed ? d->place_starts[place] : 0; d->placed && k < d->place_starts[place + 1]; k++)
			ret[n_sequences++] = dataset_at(d, d->placed[k]);
	}
	return n_sequences;
}

uint64_t dataset_n_places(const struct dataset *d)
{
	return d->n_places;
}

uint32_t dataset_per_place(const struct dataset *d)
{
	return d->per_place;
}

struct sequence dataset_held_out_at(const struct dataset *d, uint64_t i)
{
	return dataset_at(d, d->held_out[i]);
}

bool dataset_has_prompts(const struct dataset *d)
{
	for (uint32_t i = 0; i < d->n_items; i++)
		if (d->items[i].first > 1)
			return true;
	return false;
}

// Sequences of one length in the order in which they came are their tokens, nothing more: the id of a corpus is the id of its tokens.
static void list_write(const void *arg, struct writer *w)
{
	static const char plain[] = "kdserved sequence 1\n", list[] = "kdserved list 1\n", packed[] = "kdserved packed list 1\n",
			  answers[] = "kdserved answers 1\n";
	const struct dataset *d = arg;
	bool is_plain = !d->options.packed, prompts = dataset_has_prompts(d);
	for (uint32_t i = 0; i < d->n_items && is_plain; i++)
		is_plain = d->items[i].n == d->options.sequence_length && d->items[i].place == i;
	is_plain &= !prompts;
	if (prompts)
		writer_bytes(w, answers, sizeof answers - 1);
	if (d->options.packed)
		writer_bytes(w, packed, sizeof packed - 1);
	else
		writer_bytes(w, is_plain ? plain : list, is_plain ? sizeof plain - 1 : sizeof list - 1);
	for (uint32_t i = 0; i < d->n_items && !is_plain; i++) {
		writer_u32(w, d->items[i].n);
		writer_u32(w, d->items[i].place);
		if (prompts)
			writer_u32(w, d->items[i].first);
	}
	for (uint32_t i = 0; i < d->n_items; i++)
		for (uint32_t k = 0; k < d->items[i].n; k++)
			writer_u32(w, dataset_tokens(d)[d->items[i].start + k]);
}

struct content_id dataset_id(const struct dataset *d)
{
	return content_id_of_written(list_write, d);
}
