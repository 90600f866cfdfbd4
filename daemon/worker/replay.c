// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/replay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "common/error.h"
#include "daemon/model/philox.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/team.h"

#define REPLAY_MAGIC 0x3170726bu       // "krp1"
#define REPLAY_TAG 0x7265706cu         // "repl": keeps these draws apart from all others of the same seed

struct replay {
	struct replay_options options;
	struct passage *held;                  // (capacity) a ring
	uint32_t first, n;                     // the oldest; how many
	struct passage *noted;                 // (n_step) of the step in progress; those without tokens were not
	uint32_t *order;                       // (capacity) scratch of the picks:
	uint64_t picked_step;                  // whose picks its beginning is; UINT64_MAX: none
};

int replay_new(const struct replay_options *options, struct replay **ret)
{
	struct replay *r = calloc(1, sizeof *r);
	if (!r)
		return -ENOMEM;
	r->options = *options;
	r->picked_step = UINT64_MAX;
	r->held = calloc(options->capacity, sizeof *r->held);
	r->noted = calloc(options->n_step, sizeof *r->noted);
	r->order = calloc(options->capacity, sizeof *r->order);
	if (!r->held || !r->noted || !r->order) {
		replay_free(r);
		return -ENOMEM;
	}
	*ret = r;
	return 0;
}

static void noted_clear(struct replay *r)
{
	for (uint32_t i = 0; r->noted && i < r->options.n_step; i++)
		passage_done(&r->noted[i]);
}

static void held_clear(struct replay *r)
{
	for (uint32_t i = 0; r->held && i < r->options.capacity; i++)
		passage_done(&r->held[i]);
	r->first = r->n = 0;
	r->picked_step = UINT64_MAX;
}

struct replay *replay_free(struct replay *r)
{
	if (!r)
		return NULL;
	noted_clear(r);
	held_clear(r);
	free(r->held);
	free(r->noted);
	free(r->order);
	free(r);
	return NULL;
}

uint32_t replay_n(const struct replay *r)
{
	return r->n;
}

bool replay_full(const struct replay *r)
{
	return r->n == r->options.capacity;
}

static int passage_copy(const struct passage *from, struct passage *ret)
{
	size_t n = from->sequence.n_tokens - from->first;
	if (passage_init(ret, &from->sequence, from->first, from->author))
		return -ENOMEM;
	ret->mixed = from->mixed;
	ret->logprobs = malloc(n * sizeof *ret->logprobs);
	ret->drawn = malloc(n * sizeof *ret->drawn);
	if (!ret->logprobs || !ret->drawn) {
		passage_done(ret);
		return -ENOMEM;
	}
	memcpy(ret->logprobs, from->logprobs, n * sizeof *ret->logprobs);
	memcpy(ret->drawn, from->drawn, n * sizeof *ret->drawn);
	return 0;
}

int replay_note(struct replay *r, uint32_t number, const struct passage *p)
{
	passage_done(&r->noted[number]);
	return passage_copy(p, &r->noted[number]);
}

// Takes the contents of *p.
static void push(struct replay *r, struct passage *p)
{
	uint32_t at = (r->first + r->n) % r->options.capacity;
	if (replay_full(r))
		r->first = (r->first + 1) % r->options.capacity;
	else
		r->n++;
	passage_done(&r->held[at]);
	r->held[at] = *p;
	*p = (struct passage){0};
}

// ---- bytes

static void passage_write(struct writer *w, uint32_t number, const struct passage *p)
{
	writer_u32(w, number);
	writer_u32(w, p->first);
	writer_u32(w, p->sequence.n_tokens);
	writer_f64(w, p->mixed);
	for (uint32_t i = 0; i < p->sequence.n_tokens; i++)
		writer_u32(w, p->sequence.tokens[i]);
	for (uint32_t i = p->first; i < p->sequence.n_tokens; i++) {
		writer_f64(w, p->logprobs[i - p->first]);
		writer_f64(w, p->drawn[i - p->first]);
	}
}

// What passage_write wrote. -EBADMSG; -ENOMEM. Nothing to free then.
static int passage_read(const struct replay *r, struct reader *from, uint32_t *ret_number, struct passage *ret)
{
	*ret_number = reader_u32(from);
	uint32_t first = reader_u32(from), n = reader_u32(from);
	double mixed = reader_f64(from);
	if (from->failed || !first || first >= n || n > r->options.max_tokens || !(mixed >= 0 && mixed <= 1))
		return -EBADMSG;
	*ret = (struct passage){.first = first, .author = PASSAGE_STUDENT, .mixed = mixed};
	ret->sequence = (struct sequence){calloc(n, sizeof(uint32_t)), n};
	ret->logprobs = calloc(n - first, sizeof *ret->logprobs);
	ret->drawn = calloc(n - first, sizeof *ret->drawn);
	bool room = ret->sequence.tokens && ret->logprobs && ret->drawn, known = true;
	for (uint32_t i = 0; room && i < n; i++) {
		ret->sequence.tokens[i] = reader_u32(from);
		known = known && ret->sequence.tokens[i] < r->options.vocab_size;
	}
	for (uint32_t i = 0; room && i < n - first; i++) {
		ret->logprobs[i] = reader_f64(from);
		ret->drawn[i] = reader_f64(from);
	}
	if (room && known && !from->failed)
		return 0;
	passage_done(ret);
	return room ? -EBADMSG : -ENOMEM;
}

static void list_write(struct writer *w, const struct passage *list, uint32_t room, uint32_t first, uint32_t n)
{
	uint32_t n_some = 0;
	for (uint32_t i = 0; i < n; i++)
		n_some += list[(first + i) % room].sequence.n_tokens != 0;
	writer_u32(w, REPLAY_MAGIC);
	writer_u32(w, n_some);
	for (uint32_t i = 0; i < n; i++)
		if (list[(first + i) % room].sequence.n_tokens)
			passage_write(w, i, &list[(first + i) % room]);
}

static int list_encode(const struct passage *list, uint32_t room, uint32_t first, uint32_t n, uint8_t **ret, size_t *ret_n,
	struct error *err)
{
	struct writer w = writer_init(NULL, 0);
	list_write(&w, list, room, first, n);
	size_t n_bytes = w.position;
	uint8_t *bytes = malloc(n_bytes);
	if (!bytes)
		return error_set(err, ERROR_MEMORY, "rollout-replay", "out of memory");
	w = writer_init(bytes, n_bytes);
	list_write(&w, list, room, first, n);
	*ret = bytes;
	*ret_n = n_bytes;
	return 0;
}

static int read_fault(int r, struct error *err)
{
	return r == -ENOMEM ? error_set(err, ERROR_MEMORY, "rollout-replay", "out of memory")
			    : error_set(err, ERROR_CORRUPT, "rollout-replay", "the buffer of rollouts is damaged");
}

int replay_encode(const struct replay *r, uint8_t **ret, size_t *ret_n, struct error *err)
{
	return list_encode(r->held, r->options.capacity, r->first, r->n, ret, ret_n, err);
}

int replay_decode(struct replay *r, const void *bytes, size_t n, struct error *err)
{
	struct reader from = reader_init(bytes, n);
	bool good = reader_u32(&from) == REPLAY_MAGIC;
	uint32_t n_held = reader_u32(&from), number;
	int result = good && !from.failed && n_held <= r->options.capacity ? 0 : -EBADMSG;
	held_clear(r);
	for (uint32_t i = 0; result == 0 && i < n_held; i++) {
		struct passage p;
		result = passage_read(r, &from, &number, &p);
		if (result == 0)
			push(r, &p);
	}
	if (result == 0 && reader_left(&from))
		result = -EBADMSG;
	if (result == 0)
		return 0;
	held_clear(r);
	return read_fault(result, err);
}

// ---- steps

// What another process noted, to where it belongs.
static int noted_take(struct replay *r, const uint8_t *bytes, size_t n, struct error *err)
{
	struct reader from = reader_init(bytes, n);
	bool good = reader_u32(&from) == REPLAY_MAGIC;
	uint32_t n_noted = reader_u32(&from), number;
	int result = good && !from.failed ? 0 : -EBADMSG;
	for (uint32_t i = 0; result == 0 && i < n_noted; i++) {
		struct passage p;
		result = passage_read(r, &from, &number, &p);
		if (result == 0 && number >= r->options.n_step) {
			passage_done(&p);
			result = -EBADMSG;
		}
		if (result)
			break;
		passage_done(&r->noted[number]);
		r->noted[number] = p;
	}
	return result ? read_fault(result, err) : 0;
}

// Everyone's notes to everyone: of unequal length, so each says how many bytes first.
static int noted_share(struct replay *r, struct team *team, struct error *err)
{
	uint32_t size = team_size(team);
	uint8_t *mine = NULL, *padded = NULL, *all = NULL;
	size_t n = 0, longest = 1;        // room for nothing is no room
	uint64_t *lengths = calloc(size, sizeof *lengths);
	int result = lengths ? list_encode(r->noted, r->options.n_step, 0, r->options.n_step, &mine, &n, err)
			     : error_set(err, ERROR_MEMORY, "rollout-replay", "out of memory");
	result = team_agree(team, result, err);
	result = result ? result : team_gather(team, &(uint64_t){n}, sizeof *lengths, lengths, err);
	for (uint32_t i = 0; result == 0 && i < size; i++)
		longest = lengths[i] > longest ? lengths[i] : longest;
	if (result == 0) {
		padded = calloc(1, longest);
		all = calloc(size, longest);
		result = padded && all ? 0 : error_set(err, ERROR_MEMORY, "rollout-replay", "out of memory");
		result = team_agree(team, result, err);
	}
	if (result == 0) {
		memcpy(padded, mine, n);
		result = team_gather(team, padded, longest, all, err);
	}
	for (uint32_t i = 0; result == 0 && i < size; i++)
		result = i == team_rank(team) ? 0 : noted_take(r, all + i * longest, lengths[i], err);
	free(mine), free(padded), free(all), free(lengths);
	return result;
}

int replay_end_step(struct replay *r, struct team *team, struct error *err)
{
	int result = team_size(team) > 1 ? noted_share(r, team, err) : 0;
	for (uint32_t i = 0; result == 0 && i < r->options.n_step; i++)
		if (r->noted[i].sequence.n_tokens) {
			push(r, &r->noted[i]);
			r->picked_step = UINT64_MAX;
		}
	noted_clear(r);
	return result;
}

// The first n_step of a shuffled buffer (Fisher-Yates): distinct, each equally likely.
static void picks_make(struct replay *r, uint64_t step)
{
	const uint32_t key[2] = {(uint32_t)r->options.seed, (uint32_t)(r->options.seed >> 32)};
	for (uint32_t i = 0; i < r->n; i++)
		r->order[i] = i;
	for (uint32_t i = 0; i < r->options.n_step; i++) {
		uint32_t words[4];
		philox(key, (const uint32_t[]){(uint32_t)step, (uint32_t)(step >> 32), i, REPLAY_TAG}, words);
		uint32_t j = i + (uint32_t)(philox_uniform(words[0], words[1]) * (r->n - i)), kept = r->order[i];
		r->order[i] = r->order[j];
		r->order[j] = kept;
	}
	r->picked_step = step;
}

int replay_pick(struct replay *r, uint64_t step, uint32_t number, struct passage *ret)
{
	if (r->picked_step != step)
		picks_make(r, step);
	return passage_copy(&r->held[(r->first + r->order[number]) % r->options.capacity], ret);
}
