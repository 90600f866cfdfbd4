// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/partner.h"

#include <stdlib.h>

#include "common/error.h"
#include "daemon/model/philox.h"
#include "daemon/worker/link.h"

#define PARTNER_TAG 0x70617274u        // "part"

struct partner {
	struct link link;
	atomic_bool closing;
	uint64_t seed;
	char teacher[CONTENT_ID_HEX];
};

// The answers of one request.
struct written {
	uint32_t *ids;                         // (n)
	uint32_t n, n_done;
};

int partner_open(const struct partner_options *options, struct partner **ret, struct error *err)
{
	struct partner *p = calloc(1, sizeof *p);
	if (!p)
		return error_set(err, ERROR_MEMORY, "rollout-mix", "out of memory");
	p->seed = options->seed;
	content_id_to_hex(options->teacher, p->teacher);
	p->link = (struct link){.address = options->server, .token = options->token, .ca = options->ca, .server_name = options->server_name,
				.teacher_id = p->teacher, .patience_ms = options->patience_ms,
				.stop = options->stop, .closing = &p->closing};
	int r = link_open(&p->link, err);
	if (r) {
		partner_close(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct partner *partner_close(struct partner *p)
{
	if (!p)
		return NULL;
	link_close(&p->link);
	free(p);
	return NULL;
}

static int piece_take(void *arg, const struct kd_piece *piece)
{
	struct written *w = arg;
	if (piece->index >= w->n || piece->first != 0 || piece->n > 1)
		return -1;
	if (piece->n == 0)
		return 0;
	w->ids[piece->index] = piece->tokens[0];
	w->n_done++;
	return 0;
}

static uint64_t seed_of(const struct partner *p, uint64_t group)
{
	const uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
	uint32_t words[4];
	philox(key, (const uint32_t[]){(uint32_t)group, (uint32_t)(group >> 32), 0, PARTNER_TAG}, words);
	return (uint64_t)words[1] << 32 | words[0];
}

static int write_once(struct partner *p, const struct kd_prompt *prompts, uint64_t seed, struct written *w, struct error *err)
{
	const struct kd_generation request = {.size = sizeof request, .prompts = prompts, .n_prompts = w->n, .n = 1, .max_tokens = 1,
					      .temperature = 1, .top_p = 1, .typical_p = 1, .seed = &seed, .ignore_eos = true};
	w->n_done = 0;
	int r = link_generate(&p->link, &request, piece_take, w, err);
	if (r == 0 && w->n_done != w->n)
		r = error_set(err, ERROR_CORRUPT, "server", "it went on from %u of %u beginnings", w->n_done, w->n);
	return r;
}

int partner_write(void *arg, uint64_t group, const struct sequence *beginnings, uint32_t n, uint32_t *ret_ids, struct error *err)
{
	struct partner *p = arg;
	struct kd_prompt *prompts = calloc(n, sizeof *prompts);
	int r = prompts ? 0 : error_set(err, ERROR_MEMORY, "rollout-mix", "out of memory");
	for (uint32_t i = 0; r == 0 && i < n; i++)
		prompts[i] = (struct kd_prompt){beginnings[i].tokens, beginnings[i].n_tokens};
	link_begin(&p->link);
	for (uint32_t first = 0, room = link_room(&p->link); r == 0 && first < n;) {
		struct written w = {.ids = ret_ids + first, .n = n - first < room ? n - first : room};
		r = write_once(p, prompts + first, seed_of(p, group), &w, err);
		if (r)
			r = link_wait(&p->link, r, err);       // 0: once more
		else
			first += w.n;
	}
	free(prompts);
	return r;
}
