// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/mask.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/passage.h"

#define MASK_KEY UINT64_C(0x6d61736b00000000)  // "mask": draws of its own beside those of the order

struct mask {
	double share;
	uint64_t seed;
	uint32_t id, vocab_size, n_plain;
	bool *special;                 // (vocab_size)
	uint32_t *plain;               // (n_plain) ids that may stand in
};

static bool is_mask(const char *bytes, size_t n)
{
	return (n == 6 && memcmp(bytes, "[MASK]", n) == 0) || (n == 6 && memcmp(bytes, "<mask>", n) == 0);
}

static bool ids_find(struct mask *m, const struct tokenizer *t)
{
	bool found = false;
	for (uint32_t id = 0; id < m->vocab_size; id++) {
		size_t n = 0;
		const char *bytes = tokenizer_bytes(t, id, &n, &m->special[id]);
		if (bytes && m->special[id] && is_mask(bytes, n)) {
			m->id = id;
			found = true;
		}
		if (bytes && !m->special[id])
			m->plain[m->n_plain++] = id;
	}
	return found && m->n_plain > 0;
}

int mask_new(const struct tokenizer *t, double share, uint64_t seed, struct mask **ret, struct error *err)
{
	struct mask *m = calloc(1, sizeof *m);
	if (m) {
		*m = (struct mask){.share = share, .seed = seed ^ MASK_KEY, .vocab_size = tokenizer_vocab_size(t)};
		m->special = calloc(m->vocab_size, sizeof *m->special);
		m->plain = calloc(m->vocab_size, sizeof *m->plain);
	}
	int r = !m || !m->special || !m->plain ? error_set(err, ERROR_MEMORY, NULL, "out of memory") : 0;
	if (r == 0 && !ids_find(m, t))
		r = error_set(err, ERROR_UNSUPPORTED, "mlm", "the tokenizer has no [MASK]");
	if (r) {
		mask_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

struct mask *mask_free(struct mask *m)
{
	if (m) {
		free(m->special);
		free(m->plain);
		free(m);
	}
	return NULL;
}

static double uniform(uint64_t bits)   // [0, 1)
{
	return (double)(bits >> 11) * 0x1p-53;
}

static bool is_special(const struct mask *m, uint32_t id)
{
	return id >= m->vocab_size || m->special[id];
}

static void choose(const struct mask *m, uint64_t place, uint64_t at, uint32_t *token, uint32_t *label)
{
	double how = uniform(dataset_random(m->seed + 1, place, at));
	*label = *token;
	if (how < 0.8)
		*token = m->id;
	else if (how < 0.9)
		*token = m->plain[(uint64_t)((unsigned __int128)dataset_random(m->seed + 2, place, at) * m->n_plain >> 64)];
}

int mask_passage(const struct mask *m, uint64_t place, uint32_t index, struct passage *p)
{
	uint32_t n = p->sequence.n_tokens, n_chosen = 0, last = UINT32_MAX;
	double least = 2;
	p->labels = calloc(n, sizeof *p->labels);
	if (!p->labels)
		return -ENOMEM;
	memset(p->labels, 0xff, n * sizeof *p->labels);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t at = (uint64_t)index << 32 | i;
		double chance = uniform(dataset_random(m->seed, place, at));
		if (is_special(m, p->sequence.tokens[i]))
			continue;
		if (chance < least) {
			least = chance;
			last = i;
		}
		if (chance < m->share) {
			choose(m, place, at, &p->sequence.tokens[i], &p->labels[i]);
			n_chosen++;
		}
	}
	if (!n_chosen && last != UINT32_MAX)
		choose(m, place, (uint64_t)index << 32 | last, &p->sequence.tokens[last], &p->labels[last]);
	return 0;
}
