// SPDX-License-Identifier: Apache-2.0
// Asking, and what becomes of the answers. Everything but canary_submit and canary_stats is the engine's; the requests are the other
// thread's to hand over only while none of their items is out.
#include "daemon/teacher/canary.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/clock.h"
#include "daemon/teacher/teacher_internal.h"

#define N_TOKENS 40                        // longer than BATCH_SHARE_MIN, so that a neighbour's beginning is shared
#define N_SHORT 8                          // of the question for the reference, which takes seconds for each token of a large model
#define N_SHARED 36                        // tokens that the neighbours have in common with the question
#define TOP_K 8

enum { ITEM_QUESTION = 2, N_COMPANY };     // the question comes last, so that its beginning is a neighbour's

struct canary_member {
	struct request *alone, *company, *brief;   // the question, the question behind two neighbours, its beginning
	struct record *answer, *brief_answer;
};

struct canary {
	struct teacher *teacher;
	struct canary_member *members;     // (teacher->n_members)
	atomic_uint n_out;                 // items under way
	atomic_uint_fast64_t n_right, right_ms;
	struct error wrong;                // the first fault
};

// ---- questions

// The ids are spread over the vocabulary: no text, so that no tokenizer is needed and every model has them.
static void make_tokens(uint32_t ids[N_TOKENS], uint32_t vocab_size, uint32_t shift)
{
	for (uint32_t i = 0; i < N_TOKENS; i++)
		ids[i] = (uint32_t)((31 + 7919ull * (i + (i < N_SHARED ? 0 : shift))) % vocab_size);
}

static void make_query(struct query *q, const struct teacher_info *info)
{
	static const float temperatures[] = {1, 2};
	query_init(q);
	q->top_k = info->max_top_k < TOP_K ? info->max_top_k : TOP_K;
	q->n_temperatures = 2;
	memcpy(q->temperatures, temperatures, sizeof temperatures);
	q->own = q->entropy = true;
}

static void computed(struct request_item *item);

static int make_request(struct canary *c, uint32_t member, uint32_t n_items, uint32_t n_tokens, struct request **ret, struct error *err)
{
	const struct teacher_info *info = &c->teacher->infos[member];
	const struct architecture *a = &info->architecture;
	const struct query_limits limits = {.max_tokens = info->max_tokens, .max_top_k = info->max_top_k, .vocab_size = a->vocab_size,
					    .n_layers = a->n_layers, .width = a->width};
	uint32_t ids[N_TOKENS];
	int r = request_new(n_items, ret, err);
	if (r)
		return r;
	(*ret)->owner = c;
	(*ret)->computed = (*ret)->complete = computed;
	(*ret)->choice = (struct choice){.n_members = 1, .members = {member}, .fingerprint = info->fingerprint};
	for (uint32_t i = 0; i < n_items && !r; i++) {
		struct request_item *item = &(*ret)->items[i];
		make_tokens(ids, a->vocab_size, n_items - 1 - i);
		if (sequence_init(&item->sequence, ids, n_tokens < info->max_tokens ? n_tokens : info->max_tokens))
			return error_set(err, ERROR_MEMORY, NULL, "no memory for the known question");
		make_query(&item->query, info);
		r = query_check(&item->query, &item->sequence, &limits, "", err);
	}
	return r;
}

static int make_requests(struct canary *c, uint32_t member, struct error *err)
{
	struct canary_member *m = &c->members[member];
	int r = make_request(c, member, 1, N_TOKENS, &m->alone, err);
	r = r ? r : make_request(c, member, N_COMPANY, N_TOKENS, &m->company, err);
	return r ? r : make_request(c, member, 1, N_SHORT, &m->brief, err);
}

static struct canary *canary_new(struct teacher *t)
{
	struct canary *c = calloc(1, sizeof *c);
	if (c && !(c->members = calloc(t->n_members, sizeof *c->members))) {
		free(c);
		return NULL;
	}
	if (c)
		c->teacher = t;
	return c;
}

struct canary *canary_free(struct canary *c)
{
	for (uint32_t i = 0; c && i < c->teacher->n_members; i++) {
		request_free(c->members[i].alone);
		request_free(c->members[i].company);
		request_free(c->members[i].brief);
		record_unref(c->members[i].answer);
		record_unref(c->members[i].brief_answer);
	}
	if (c)
		free(c->members);
	free(c);
	return NULL;
}

// ---- answers

static bool same_bytes(const struct record *a, const struct record *b)
{
	size_t n, m;
	const void *x = record_bytes(a, &n), *y = record_bytes(b, &m);
	return n == m && memcmp(x, y, n) == 0;
}

// Two answers that must be the same bytes are not: says where, however little it is.
static void set_wrong(struct canary *c, const struct record *known, const struct record *now, const char *when)
{
	struct error why = {0};
	uint64_t right = atomic_load(&c->right_ms), now_ms = clock_ms();
	if (canary_compare(known, now, 0, &why) == 0)
		error_set(&why, ERROR_INTERNAL, CANARY_FIELD, "it has other bytes");
	error_set(&c->wrong, ERROR_INTERNAL, CANARY_FIELD,
		  "the known question has another answer %s: %s; the last right one was %.1f s ago", when, why.message,
		  right ? (double)(now_ms - right) * 1e-3 : 0.0);
}

static void judge(struct canary *c, const struct request_item *item)
{
	struct canary_member *m = &c->members[item->request->choice.members[0]];
	bool brief = item->request == m->brief, company = item->request == m->company;
	struct record **known = brief ? &m->brief_answer : &m->answer;
	if (c->wrong.code || (company && item->index != ITEM_QUESTION))
		return;
	if (!item->record)
		c->wrong = item->error;
	else if (!*known)
		*known = record_ref(item->record);
	else if (!same_bytes(*known, item->record))
		set_wrong(c, *known, item->record, company ? "in company" : "now");
	if (!c->wrong.code) {
		atomic_fetch_add(&c->n_right, 1);
		atomic_store(&c->right_ms, clock_ms());
	}
}

// The engine gives an item back.
static void computed(struct request_item *item)
{
	struct canary *c = item->request->owner;
	judge(c, item);
	item->record = record_unref(item->record);
	item->error = (struct error){0};
	item->not_finite = false;
	if (c->wrong.code)
		teacher_poison(c->teacher, &c->wrong);
	atomic_fetch_sub(&c->n_out, 1);
}

// ---- at start

// Through the engine's own passes, which nobody else is part of yet.
static int ask(struct canary *c, struct request *r, struct error *err)
{
	struct batch_backlog *scores = &c->teacher->members[r->choice.members[0]].schedule.scores;
	atomic_fetch_add(&c->n_out, r->n_items);
	for (uint32_t i = 0; i < r->n_items; i++)
		batch_backlog_append(scores, &r->items[i].link);
	while (atomic_load(&c->n_out))
		pass_run(c->teacher);
	if (c->wrong.code)
		*err = c->wrong;
	return c->wrong.code ? error_errno(c->wrong.code) : 0;
}

// Formats that are defined to the last integer: the reference has them too.
static const char *reference_numeric(const char *numeric)
{
	return strncmp(numeric, "int8", 4) == 0 ? "int8" : strncmp(numeric, "fp8", 3) == 0 ? "fp8" : "auto";
}

// The same file on the reference, as a teacher of its own with only this question in it. It needs room for the weights a second time.
static int open_reference(const struct teacher *t, uint32_t member, struct teacher **ret, struct error *err)
{
	struct teacher_options options = t->options;
	options.sources = &t->sources[member];
	options.n_sources = 1;
	options.device = "ref";
	options.numeric = reference_numeric(t->infos[member].numeric);
	options.max_tokens = options.batch_tokens = N_SHORT;
	options.cache_tokens = 0;
	options.max_gather = options.max_draws = 1;
	options.event_fd = -1;
	int r = teacher_new(&options, ret, err);
	return r ? r : teacher_load(*ret, err);
}

static int ask_reference(const struct canary *c, uint32_t member, struct error *err)
{
	struct teacher *t = NULL;
	struct canary *other = NULL;
	struct error why = {0};
	int r = open_reference(c->teacher, member, &t, err);
	if (!r && !(other = canary_new(t)))
		r = error_set(err, ERROR_MEMORY, NULL, "no memory for the reference's question");
	if (!r)
		r = make_request(other, 0, 1, N_SHORT, &other->members[0].brief, err);
	if (!r)
		r = ask(other, other->members[0].brief, err);
	if (!r)
		r = canary_compare(other->members[0].brief_answer, c->members[member].brief_answer,
				   canary_tolerance(c->teacher->infos[member].numeric), &why);
	if (why.code)
		error_set(err, ERROR_INTERNAL, CANARY_FIELD, "teacher %.60s does not answer as the reference does: %s",
			  c->teacher->infos[member].name, why.message);
	canary_free(other);
	if (t) {
		teacher_unload(t);
		teacher_free(t);
	}
	return r;
}

static int check_member(struct canary *c, uint32_t member, struct error *err)
{
	struct canary_member *m = &c->members[member];
	struct teacher_info *info = &c->teacher->infos[member];
	const struct teacher_options *o = &c->teacher->options;
	struct error why = {0};
	int r = make_requests(c, member, err);
	r = r ? r : ask(c, m->alone, err);
	r = r ? r : ask(c, m->company, err);
	if (!r && o->canary_directory && canary_keep(o->canary_directory, m->answer, canary_tolerance(info->numeric), &why)) {
		if (strcmp(why.field, CANARY_FIELD) == 0) {
			*err = why;
			return error_errno(why.code);
		}
		snprintf(info->canary_note, sizeof info->canary_note, "%s", why.message);    // a disk that refuses costs no answers
	}
	if (r || !o->canary_reference)
		return r;
	r = ask(c, m->brief, err);
	return r ? r : ask_reference(c, member, err);
}

int canary_start(struct teacher *t, struct canary **ret_canary, struct error *err)
{
	struct canary *c = t->canary = canary_new(t);      // its passes are not counted
	int r = c ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory for the known question");
	for (uint32_t i = 0; i < t->n_members && !r; i++)
		r = check_member(c, i, err);
	*ret_canary = c;
	return r;
}

// ---- later

void canary_submit(struct canary *c)
{
	if (atomic_load(&c->n_out))
		return;
	struct request_item *first = NULL;
	for (uint32_t i = c->teacher->n_members; i-- > 0;) {
		struct request_item *item = &c->members[i].alone->items[0];
		item->link.next = first ? &first->link : NULL;
		first = item;
	}
	atomic_store(&c->n_out, c->teacher->n_members);
	teacher_submit(c->teacher, first);
}

void canary_stats(const struct canary *c, struct canary_stats *ret)
{
	uint64_t right = atomic_load(&c->right_ms), now = clock_ms();
	*ret = (struct canary_stats){.n_right = atomic_load(&c->n_right), .age_ms = now > right ? now - right : 0};
}

bool canary_is_alone(const struct canary *c, const struct batch *b)
{
	for (uint32_t i = 0; i < b->n_items; i++)
		if (!c || b->items[i].item->request->owner != c)
			return false;
	return !b->n_generated;
}
