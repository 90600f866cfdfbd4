// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/dataset.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/packing.h"
#include "daemon/model/text_file.h"

struct dataset {
	struct dataset_options options;
	struct packing packing;
	uint64_t n_sequences, n_held_out;
	uint32_t *train, *held_out;    // sequence numbers
	uint32_t *order;               // (n_train) of `epoch`
	uint64_t epoch;
};

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
		free(d->train);
		free(d->held_out);
		free(d->order);
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

static uint64_t held_out_count(const struct dataset *d)
{
	if (d->options.held_out <= 0)
		return 0;
	uint64_t n = (uint64_t)llround(d->options.held_out * (double)d->n_sequences);
	n = n < d->options.held_out_max ? n : d->options.held_out_max;
	return n ? n : 1;
}

int dataset_split(struct dataset *d, struct error *err)
{
	uint64_t n = d->n_sequences = d->packing.n_tokens / d->options.sequence_length;
	uint64_t held = d->n_held_out = held_out_count(d);
	if (n <= held)
		return error_set(err, ERROR_INVALID, "corpus", "%zu tokens make %llu sequences of %u, %llu of them held out: too little to train on",
				 d->packing.n_tokens, (unsigned long long)n, d->options.sequence_length, (unsigned long long)held);
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
	return 0;
}

uint64_t dataset_n_train(const struct dataset *d)
{
	return d->n_sequences - d->n_held_out;
}

uint64_t dataset_n_held_out(const struct dataset *d)
{
	return d->n_held_out;
}

// A counter-based generator (splitmix64's finaliser over the parts): no state to keep, so nothing to save in a checkpoint.
static uint64_t random_at(uint64_t seed, uint64_t epoch, uint64_t i)
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
	uint64_t n = dataset_n_train(d);
	memcpy(d->order, d->train, n * sizeof *d->order);
	for (uint64_t i = n - 1; i > 0; i--) {         // Fisher-Yates
		uint64_t j = (uint64_t)((unsigned __int128)random_at(d->options.seed, epoch, i) * (i + 1) >> 64);
		uint32_t swap = d->order[i];
		d->order[i] = d->order[j];
		d->order[j] = swap;
	}
	d->epoch = epoch;
}

static const uint32_t *sequence_at(const struct dataset *d, uint32_t i)
{
	return d->packing.tokens + (size_t)i * d->options.sequence_length;
}

const uint32_t *dataset_train_at(struct dataset *d, uint64_t position)
{
	uint64_t n = dataset_n_train(d);
	if (d->epoch != position / n)
		order_fill(d, position / n);
	return sequence_at(d, d->order[position % n]);
}

const uint32_t *dataset_held_out_at(const struct dataset *d, uint64_t i)
{
	return sequence_at(d, d->held_out[i]);
}

struct content_id dataset_id(const struct dataset *d)
{
	struct sequence all = {d->packing.tokens, (uint32_t)(d->n_sequences * d->options.sequence_length)};
	return sequence_id(&all);
}
