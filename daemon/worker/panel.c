// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/panel.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/query.h"
#include "common/record.h"
#include "daemon/log.h"
#include "daemon/model/tokenizer.h"
#include "daemon/train/other.h"
#include "daemon/worker/questions.h"
#include "daemon/worker/trainer.h"

struct answers *panel_answers(const struct trainer *t, uint32_t teacher)
{
	return teacher ? t->others[teacher] : t->answers;
}

// An error of one of the others begins with where it is named.
static int say_whose(const char *where, const char *name, int r, struct error *err)
{
	struct error why = *err;
	return r ? error_set(err, why.code, "other-teacher", "%s: other-teacher %s: %s%s%.300s", where, name, why.field,
			     *why.field ? ": " : "", why.message)
		 : 0;
}

static int vocabulary_check(const struct trainer *t, uint32_t teacher, struct error *err)
{
	uint32_t own = answers_info(t->answers)->vocab_size, its = answers_info(t->others[teacher])->vocab_size;
	return its == own ? 0
		: error_set(err, ERROR_CONFLICT, NULL, "its vocabulary has %u tokens, that of the run's own teacher %u", its, own);
}

static int other_open(struct trainer *t, uint32_t teacher, struct error *err)
{
	const struct run_settings *s = t->settings;
	const char *name = objective_teacher_name(t->objective, teacher), *where = "";
	struct other other;
	int r = other_find(&s->others, name, &other, &where, err);
	bool encrypted = other.server && strncmp(other.server, "tls:", 4) == 0;
	struct answers_options o = {.shards = other.shards, .server = other.server, .ca = other.ca ? other.ca : encrypted ? s->ca : NULL,
				    .server_name = other.server_name, .teacher = other.model, .teacher_id = other.id,
				    .token = other.server ? t->token : NULL, .masked = t->settings->mlm, .patience_ms = s->patience,
				    .stop = t->options.stop};
	r = r ? r : answers_open(&o, &t->others[teacher], err);
	r = r ? r : vocabulary_check(t, teacher, err);
	r = say_whose(where, name, r, err);
	other_done(&other);
	return r;
}

// With one teacher its fingerprint; of several, one id of all of theirs in order.
static struct content_id id_of_all(const struct trainer *t)
{
	struct content_id all[OBJECTIVE_MAX_TEACHERS];
	uint32_t n = objective_n_teachers(t->objective);
	for (uint32_t i = 0; i < n; i++)
		all[i] = answers_info(panel_answers(t, i))->teacher;
	return n == 1 ? all[0] : content_id_of(all, n * sizeof *all);
}

int panel_open(struct trainer *t, struct error *err)
{
	int r = 0;
	for (uint32_t i = 1; r == 0 && i < objective_n_teachers(t->objective); i++)
		r = other_open(t, i, err);
	if (r == 0)
		t->state.teacher = id_of_all(t);
	return r;
}

void panel_close(struct trainer *t)
{
	for (uint32_t i = 1; i < OBJECTIVE_MAX_TEACHERS; i++) {
		answers_close(t->others[i]);
		t->others[i] = NULL;
	}
}

int panel_check_tokenizers(const struct trainer *t, struct error *err)
{
	struct content_id own = tokenizer_id(t->tokenizer);
	for (uint32_t i = 1; i < objective_n_teachers(t->objective); i++) {
		const struct answers_info *info = answers_info(t->others[i]);
		const char *name = objective_teacher_name(t->objective, i);
		if (!info->described)
			log_warning("nothing says which tokenizer the teacher %s has: taking the run's for it", name);
		else if (memcmp(&own, &info->provenance.tokenizer, sizeof own) != 0)
			return error_set(err, ERROR_CONFLICT, "other-teacher",
					 "%s: the teacher %s has another tokenizer than the run: its ids mean other bytes",
					 objective_teacher_where(t->objective, i), name);
	}
	return 0;
}

static int rows_compare(const struct record_rows *own, const struct record_rows *other, struct error *err)
{
	if (other->n_rows == own->n_rows && other->query.first == own->query.first && other->sequence.n_tokens == own->sequence.n_tokens)
		return 0;
	return error_set(err, ERROR_INTERNAL, NULL, "two teachers answered for other positions");
}

int panel_next(struct trainer *t, uint64_t step, struct record_rows **ret_rows, uint32_t n, struct error *err)
{
	uint32_t n_teachers = objective_n_teachers(t->objective);
	int r = 0;
	memset(ret_rows, 0, (size_t)n_teachers * n * sizeof *ret_rows);
	for (uint32_t i = 0; r == 0 && i < n_teachers; i++)
		if (objective_asks(t->objective, i, step))
			r = answers_next(panel_answers(t, i), ret_rows + (size_t)i * n, err);
	for (size_t i = n; r == 0 && i < (size_t)n_teachers * n; i++)
		r = ret_rows[i] ? rows_compare(ret_rows[i % n], ret_rows[i], err) : 0;
	for (size_t i = 0; r && i < (size_t)n_teachers * n; i++)
		ret_rows[i] = record_rows_free(ret_rows[i]);
	return r;
}

int panel_count(struct trainer *t, uint64_t step, const struct sequence *sequences, uint32_t n, bool *ret_has, uint32_t *ret_n_missing,
		struct error *err)
{
	bool *has = calloc(n ? n : 1, sizeof *has);
	int r = has ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
	memset(ret_has, 1, n * sizeof *ret_has);
	*ret_n_missing = 0;
	for (uint32_t i = 0; r == 0 && i < objective_n_teachers(t->objective); i++) {
		struct query query;
		uint32_t missing;
		questions_at(t, i, step, &query);
		r = answers_count(panel_answers(t, i), &query, sequences, n, has, &missing, err);
		query_done(&query);
		for (uint32_t k = 0; k < n; k++)
			ret_has[k] &= has[k];
	}
	for (uint32_t k = 0; k < n; k++)
		*ret_n_missing += !ret_has[k];
	free(has);
	return r;
}

bool panel_has_shards(const struct trainer *t)
{
	bool any = settings_shards(t->settings) != NULL;
	for (uint32_t i = 1; i < objective_n_teachers(t->objective); i++)
		any |= answers_are_shards(t->others[i]);
	return any;
}

void panel_stats(const struct trainer *t, struct answers_stats *ret)
{
	*ret = (struct answers_stats){0};
	for (uint32_t i = 0; i < objective_n_teachers(t->objective); i++) {
		struct answers_stats one = {0};
		if (panel_answers(t, i))
			answers_stats(panel_answers(t, i), &one);
		ret->n_answers += one.n_answers;
		ret->n_cached += one.n_cached;
		ret->n_lost += one.n_lost;
		ret->n_reconnects += one.n_reconnects;
		ret->n_kept += one.n_kept;
		ret->n_keep_failures += one.n_keep_failures;
	}
}
