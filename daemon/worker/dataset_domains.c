// SPDX-License-Identifier: Apache-2.0
// Training places drawn from domains by shares: which domain is a function of (seed, position, shares), which of its places of how many
// were drawn of it before. Each domain has its own epochs. So where the stream is needs no more than shares and counts at one position.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/worker/dataset_internal.h"

#define DOMAIN_COINS UINT64_C(0x646f6d61696e73)        // the "epoch" of the coins, which no epoch of places reaches

int dataset_end_domain(struct dataset *d, struct error *err)
{
	size_t L = d->options.sequence_length, end = d->options.documents ? d->n_items : (d->packing.n_tokens + L - 1) / L;
	if (d->n_domains == DATASET_MAX_DOMAINS)
		return error_set(err, ERROR_TOO_LARGE, "domains", "at most %d files of the corpus can be domains", DATASET_MAX_DOMAINS);
	d->domain_ends[d->n_domains++] = (uint32_t)end;        // of a sequence that two files share the first one's
	return 0;
}

uint32_t dataset_n_domains(const struct dataset *d)
{
	return d->n_domains;
}

const uint32_t *dataset_domain_ends(const struct dataset *d)
{
	return d->domain_ends;
}

void dataset_set_domains(struct dataset *d, const uint32_t *ends, uint32_t n)
{
	memcpy(d->domain_ends, ends, n * sizeof *ends);
	d->n_domains = n;
}

static uint32_t domain_of(const struct dataset *d, uint32_t item)
{
	uint32_t k = 0;
	while (k + 1 < d->n_domains && d->items[item].place >= d->domain_ends[k])
		k++;
	return k;
}

uint32_t dataset_held_out_domain(const struct dataset *d, uint64_t i)
{
	return domain_of(d, d->held_out[i]);
}

int dataset_fill_domains(struct dataset *d, struct error *err)
{
	uint32_t n = (uint32_t)dataset_n_train(d), at = 0;
	if (d->n_domains == 0)
		return 0;
	d->domain_places = reallocarray(NULL, n, sizeof *d->domain_places);
	d->domain_order = reallocarray(NULL, n, sizeof *d->domain_order);
	if (!d->domain_places || !d->domain_order)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %u sequences", n);
	for (uint32_t k = 0; k < d->n_domains; k++) {
		d->domain_starts[k] = at;
		d->domain_epochs[k] = UINT64_MAX;
		for (uint32_t i = 0; i < n; i++)
			if (domain_of(d, d->train[i]) == k)
				d->domain_places[at++] = i;
		if (at == d->domain_starts[k])
			return error_set(err, ERROR_INVALID, "domains", "file %u of the corpus has no sequence to train on", k + 1);
	}
	d->domain_starts[d->n_domains] = at;
	return 0;
}

static uint32_t draw(const struct dataset *d, uint64_t position)
{
	double u = (double)(dataset_random(d->options.seed, DOMAIN_COINS, position) >> 11) * 0x1p-53;
	uint32_t k = 0;
	for (; k + 1 < d->n_domains && u >= d->drawn.shares[k]; k++)
		u -= d->drawn.shares[k];
	return k;
}

// The counts as they are before `position`.
static void seek(struct dataset *d, uint64_t position)
{
	if (d->drawn.position > position)
		d->drawn = d->drawn_from;
	for (; d->drawn.position < position; d->drawn.position++)
		d->drawn.taken[draw(d, d->drawn.position)]++;
}

static void order_fill(struct dataset *d, uint32_t k, uint64_t epoch)
{
	uint32_t *order = d->domain_order + d->domain_starts[k], n = d->domain_starts[k + 1] - d->domain_starts[k];
	uint64_t seed = d->options.seed + ((uint64_t)(k + 1) << 53);  // seeds of runs are below 2^53
	memcpy(order, d->domain_places + d->domain_starts[k], n * sizeof *order);
	d->domain_epochs[k] = epoch;
	for (uint32_t i = n - 1; i > 0 && !d->options.sequential; i--) {
		uint32_t j = (uint32_t)((unsigned __int128)dataset_random(seed, epoch, i) * (i + 1) >> 64), swap = order[i];
		order[i] = order[j];
		order[j] = swap;
	}
}

uint32_t dataset_domain_place(struct dataset *d, uint64_t position)
{
	seek(d, position);
	uint32_t k = draw(d, position), n = d->domain_starts[k + 1] - d->domain_starts[k];
	if (d->domain_epochs[k] != d->drawn.taken[k] / n)
		order_fill(d, k, d->drawn.taken[k] / n);
	return d->domain_order[d->domain_starts[k] + d->drawn.taken[k] % n];
}

void dataset_draw_domains(struct dataset *d, const struct dataset_domains *from)
{
	d->drawn_from = d->drawn = *from;
}

void dataset_domains_at(struct dataset *d, uint64_t position, struct dataset_domains *ret)
{
	seek(d, position);
	*ret = d->drawn;
}
