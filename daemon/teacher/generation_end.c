// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/generation_end.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/request.h"

int generation_end_init(struct generation_end *e, const struct request_item *item)
{
	const struct generation_query *q = item->request->generate;
	*e = (struct generation_end){0};
	for (uint32_t i = 0; i < q->n_stops; i++) {
		size_t n = strlen(q->stops[i]);
		e->longest = n > e->longest ? n : e->longest;
	}
	e->tail = e->longest ? malloc(e->longest) : NULL;
	return e->longest && !e->tail ? -ENOMEM : 0;
}

void generation_end_done(struct generation_end *e)
{
	free(e->tail);
	e->tail = NULL;
}

// What the answer's last bytes are: those kept, and a token's.
struct window { const char *text; size_t n, n_old; };

// The first place in the window where a stop string begins that ends in the new bytes; SIZE_MAX = nowhere.
static size_t find_stop(const struct generation_query *q, const struct window *w, int32_t *ret_stop)
{
	size_t best = SIZE_MAX;
	for (uint32_t i = 0; i < q->n_stops; i++) {
		size_t n = strlen(q->stops[i]), from = w->n_old >= n ? w->n_old - n + 1 : 0;
		const char *found = from < w->n ? memmem(w->text + from, w->n - from, q->stops[i], n) : NULL;
		if (found && (size_t)(found - w->text) < best) {
			best = (size_t)(found - w->text);
			*ret_stop = (int32_t)i;
		}
	}
	return best;
}

// How many of the window's last bytes may begin a stop string.
static size_t unsure(const struct generation_query *q, const struct window *w)
{
	size_t most = 0;
	for (uint32_t i = 0; i < q->n_stops; i++) {
		size_t n = strlen(q->stops[i]) - 1;
		n = n < w->n ? n : w->n;
		while (n > most && memcmp(w->text + w->n - n, q->stops[i], n) != 0)
			n--;
		most = n > most ? n : most;
	}
	return most;
}

static void keep_tail(struct generation_end *e, const struct window *w)
{
	size_t n = e->longest ? e->longest - 1 : 0;
	e->n_tail = n < w->n ? n : w->n;
	if (e->n_tail)
		memmove(e->tail, w->text + w->n - e->n_tail, e->n_tail);
}

// Adds the token's text; returns how much of all of it is sure. *ret_stop: the stop string before which it ends, or -1.
static size_t add_text(struct generation_end *e, const struct generation_query *q, const char *text, size_t n, bool given,
		       int32_t *ret_stop)
{
	char *joined = malloc(e->n_tail + n + 1);
	*ret_stop = -1;
	if (!joined)
		return SIZE_MAX;
	if (e->n_tail)
		memcpy(joined, e->tail, e->n_tail);
	memcpy(joined + e->n_tail, text, n);
	struct window w = {joined, e->n_tail + n, e->n_tail};
	size_t begin = e->n_text - e->n_tail, stop = given ? SIZE_MAX : find_stop(q, &w, ret_stop);
	size_t sure = begin + (stop < SIZE_MAX ? stop : w.n - unsure(q, &w));
	e->n_text += n;
	keep_tail(e, &w);
	free(joined);
	return sure;
}

static bool ends(const struct generation_query *q, const int32_t *eos_ids, uint32_t id)
{
	for (int i = 0; i < 2 && !q->ignore_eos; i++)
		if (eos_ids[i] >= 0 && id == (uint32_t)eos_ids[i])
			return true;
	for (uint32_t i = 0; i < q->n_stop_ids; i++)
		if (id == q->stop_ids[i])
			return true;
	return false;
}

static void finish(struct generation *g, const struct generation_query *q, const int32_t *eos_ids, uint32_t at, int32_t stop)
{
	if (stop >= 0) {
		g->finish = GENERATION_STOP;
		g->stop = stop;
	} else if (ends(q, eos_ids, g->tokens[at])) {
		g->finish = GENERATION_STOP;
		g->stop_id = g->tokens[at];
	} else if (at + 1 == g->capacity) {
		g->finish = GENERATION_LENGTH;
	}
}

void generation_end_check(struct generation_end *e, struct request_item *item, const struct tokenizer *tokenizer, const int32_t *eos_ids,
			  uint32_t at, bool given)
{
	const struct generation_query *q = item->request->generate;
	struct generation *g = item->generation;
	char *text = NULL;
	size_t n = 0, sure;
	int32_t stop;
	if (tokenizer_decode_part(tokenizer, &g->tokens[at], 1, true, &text, &n, &item->error))
		return;
	sure = add_text(e, q, text, n, given, &stop);
	free(text);
	if (sure == SIZE_MAX) {
		error_set(&item->error, ERROR_MEMORY, NULL, "no memory for the answer's text");
		return;
	}
	if (!given)
		finish(g, q, eos_ids, at, stop);
	if (g->finish && stop < 0)
		sure = e->n_text;    // nothing follows that could complete a stop string
	atomic_store(&g->n_tokens, at + 1);
	atomic_store(&g->n_text, sure);
}
