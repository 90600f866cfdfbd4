// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/corpus.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/log.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/input.h"
#include "daemon/worker/answers.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/panel.h"
#include "daemon/worker/questions.h"
#include "daemon/worker/texts.h"
#include "daemon/worker/trainer.h"

#define CORPUS_STEPS_CHECKED 32        // spread over the run, the first and the last among them
#define CORPUS_WORDS 160               // of a question
#define CORPUS_LIST "sequences.list"
#define CORPUS_LIST_MAX ((size_t)1 << 36)      // 2^32 tokens and where they end

static struct dataset_options options_make(const struct trainer *t)
{
	const struct run_settings *s = t->settings;
	return (struct dataset_options){.sequence_length = (uint32_t)s->sequence_length, .packed = s->packing == RUN_PACKING_BFD,
					.documents = s->corpus.n && (s->packing != RUN_PACKING_WRAPPED || s->corpus_prompt),
					.held_out = s->held_out, .held_out_max = (uint32_t)s->held_out_max,
					.sequential = s->order == RUN_ORDER_SEQUENTIAL, .seed = (uint64_t)s->seed};
}

static int corpus_read(const struct trainer *t, struct dataset **ret, struct error *err)
{
	struct dataset_options o = options_make(t);
	return texts_read(t->settings, t->tokenizer, &o, ret, err);
}

// ---- what shards hold

static int sequence_told(void *arg, const struct sequence *s, struct error *err)
{
	return dataset_append_sequence(arg, s->tokens, s->n_tokens, err);
}

// What one of two questions holds and the other may not, in words.
static void query_say(const struct query *q, char *text, size_t size)
{
	static const char *const values[] = {"f32", "f16", "u8"};
	FILE *f = fmemopen(text, size, "w");           // cut where it is longer
	if (!f)
		return;
	fprintf(f, "%" PRIu32 " ids as %s at temperature", q->top_k, values[q->values]);
	for (uint32_t i = 0; i < q->n_temperatures; i++)
		fprintf(f, "%s %g", i ? "," : "", (double)q->temperatures[i]);
	if (q->draws.n)
		fprintf(f, ", %" PRIu32 " draws of seed %" PRIu64, q->draws.n, q->draws.seed);
	fprintf(f, "%s%s%s", q->own ? ", own" : "", q->entropy ? ", entropy" : "", q->tail ? ", tail" : "");
	if (q->n_features)
		fprintf(f, ", rows of %" PRIu32 " layers", q->n_features);
	fclose(f);
}

static int survey_judge(const struct trainer *t, const struct answers_survey *v, struct error *err)
{
	char asked[CORPUS_WORDS] = "", held[CORPUS_WORDS] = "";
	query_say(&t->query, asked, sizeof asked);
	if (v->n_unfit) {
		query_say(&v->unfit, held, sizeof held);
		log_warning("%" PRIu64 " records do not hold what is asked (%s, all rows): one holds %s, rows %" PRId32 " to %" PRId32,
			    v->n_unfit, asked, held, v->unfit.first, v->unfit.last);
	}
	log_info("shards: %" PRIu64 " records to train on; %" PRIu64 " of other teachers, %" PRIu64 " longer than sequence-length, %" PRIu64
		 " too short, %" PRIu64 " places damaged", v->n_told, v->n_other_teacher, v->n_too_long, v->n_too_short, v->n_damaged);
	if (v->n_told)
		return 0;
	return error_set(err, ERROR_NOT_FOUND, "teacher",
			 "no record can be trained on: %" PRIu64 " are longer than sequence-length, %" PRIu64 " do not hold %s%s%s",
			 v->n_too_long, v->n_unfit, asked, *held ? ", but " : "", held);
}

static int shards_read(struct trainer *t, struct dataset **ret, struct error *err)
{
	struct dataset_options o = options_make(t);
	struct answers_survey v = {0};
	int r = dataset_new(&o, ret, err);
	if (r)
		return r;
	r = answers_survey(t->answers, &t->query, o.sequence_length, sequence_told, *ret, &v, err);
	r = r ? r : survey_judge(t, &v, err);
	query_done(&v.unfit);
	return r ? r : dataset_list(*ret, err);
}

// ---- answers that are missing

static int sequences_list(const struct dataset *d, struct sequence **ret, bool **ret_has, struct error *err)
{
	uint32_t n = dataset_n_sequences(d);
	*ret = calloc(n ? n : 1, sizeof **ret);
	*ret_has = calloc(n ? n : 1, sizeof **ret_has);
	for (uint32_t i = 0; *ret && i < n; i++)
		(*ret)[i] = dataset_at(d, i);
	return *ret && *ret_has ? 0 : error_set(err, ERROR_MEMORY, "corpus", "out of memory for %u sequences", n);
}

// `fixed`: the list is that of a run that goes on; what is missing from it is masked.
static int missing_judge(const struct trainer *t, struct dataset *d, uint32_t missing, const bool *has, bool fixed, struct error *err)
{
	uint32_t n = dataset_n_sequences(d);
	char asked[CORPUS_WORDS] = "";
	query_say(&t->query, asked, sizeof asked);
	if (missing == 0)
		return 0;
	if (missing == n || t->settings->missing == RUN_MISSING_FAIL)
		return error_set(err, ERROR_NOT_FOUND, "missing",
				 "%u of the %u sequences of %u tokens%s have no answer (%s) in the shards%s", missing, n,
				 (uint32_t)t->settings->sequence_length, fixed ? " that this run began with" : "", asked,
				 missing < n ? "; missing = skip goes on without them" : "");
	if (fixed)
		log_warning("%u of the %u sequences that this run began with have no answer any more: their rows are left out", missing, n);
	else
		log_warning("%u of the %u sequences of the corpus have no answer: training on the others", missing, n);
	if (!fixed)
		dataset_keep(d, has);
	return 0;
}

static int missing_count(struct trainer *t, struct dataset *d, bool fixed, struct error *err)
{
	struct sequence *sequences = NULL;
	bool *has = NULL;
	uint32_t missing = 0;
	int r = sequences_list(d, &sequences, &has, err);
	r = r ? r : panel_count(t, 0, sequences, dataset_n_sequences(d), has, &missing, err);
	r = r ? r : missing_judge(t, d, missing, has, fixed, err);
	free(has);
	free(sequences);
	return r;
}

// The teacher's own perplexity can be told when every held-out answer holds what it takes.
static int own_settle(struct trainer *t, struct error *err)
{
	uint32_t n = (uint32_t)dataset_n_held_out(t->dataset), missing = 0;
	struct sequence *sequences = calloc(n ? n : 1, sizeof *sequences);
	bool *has = calloc(n ? n : 1, sizeof *has);
	int r = sequences && has ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t i = 0; r == 0 && i < n; i++)
		sequences[i] = dataset_held_out_at(t->dataset, i);
	r = r ? r : answers_count(t->answers, &t->held_out_query, sequences, n, has, &missing, err);
	if (r == 0 && missing) {
		t->held_out_query.own = false;
		log_info("the teacher's own perplexity is not known: %u held-out answers lack the logit of the next token", missing);
	}
	free(has);
	free(sequences);
	return r;
}

// ---- the list on disk

static int list_save(const struct dataset *d, const char *path, const struct content_id *source, struct error *err)
{
	uint8_t *bytes = NULL;
	size_t n = 0;
	int r = dataset_encode(d, source, &bytes, &n, err);
	r = r ? r : checkpoint_write_file(path, bytes, n, err);
	free(bytes);
	return r;
}

static int list_load(struct trainer *t, const char *path, struct content_id *ret_source, struct error *err)
{
	struct dataset_options o = options_make(t);
	char *bytes = NULL;
	size_t n = 0;
	int r = input_read_file(path, CORPUS_LIST_MAX, &bytes, &n, err);
	r = r ? r : dataset_decode(&o, bytes, n, ret_source, &t->dataset, err);
	free(bytes);
	return r;
}

// What a run that goes on began with. The texts must still be the ones it was made from.
static int list_resume(struct trainer *t, const char *path, struct error *err)
{
	struct content_id made_from, now = {{0}};
	struct dataset *texts = NULL;
	int r = list_load(t, path, &made_from, err);
	if (r == 0 && t->settings->corpus.n)
		r = corpus_read(t, &texts, err);
	if (r == 0 && texts)
		now = dataset_id(texts);
	dataset_free(texts);
	if (r == 0 && memcmp(&made_from, &now, sizeof now) != 0)
		r = error_set(err, ERROR_CONFLICT, "corpus", "differs from what this run began with: it cannot be resumed");
	return r ? r : missing_count(t, t->dataset, true, err);
}

// The list of a corpus that is answered whole is the corpus; any other is written down.
static int list_make(struct trainer *t, const char *path, struct error *err)
{
	struct content_id source = {{0}}, list;
	bool texts = t->settings->corpus.n > 0;
	if (unlink(path) < 0 && errno != ENOENT)
		return error_system(err, errno, "output", "cannot remove %s", path);
	int r = texts ? corpus_read(t, &t->dataset, err) : shards_read(t, &t->dataset, err);
	if (r)
		return r;
	if (texts)
		source = dataset_id(t->dataset);
	r = texts || objective_n_teachers(t->objective) > 1 ? missing_count(t, t->dataset, false, err) : 0;
	if (r)
		return r;
	list = dataset_id(t->dataset);
	return memcmp(&list, &source, sizeof list) ? list_save(t->dataset, path, &source, err) : 0;
}

static int offline_open(struct trainer *t, struct error *err)
{
	char *path = NULL;
	if (asprintf(&path, "%s/" CORPUS_LIST, t->options.output) < 0)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	bool resumed = t->options.resume && access(path, F_OK) == 0;
	int r = resumed ? list_resume(t, path, err) : list_make(t, path, err);
	free(path);
	return r;
}

int corpus_open(struct trainer *t, struct error *err)
{
	bool offline = panel_has_shards(t);
	int r = offline ? offline_open(t, err) : corpus_read(t, &t->dataset, err);
	r = r ? r : dataset_split(t->dataset, err);
	if (r == 0 && settings_shards(t->settings))
		r = own_settle(t, err);
	if (r)
		return r;
	log_info("%s: %llu sequences of %s%u tokens to train on, %llu held out", t->settings->corpus.n ? "corpus" : "shards",
		 (unsigned long long)dataset_n_train(t->dataset), t->settings->corpus.n && !options_make(t).documents ? "" : "up to ",
		 (uint32_t)t->settings->sequence_length, (unsigned long long)dataset_n_held_out(t->dataset));
	if (t->settings->packing == RUN_PACKING_BFD)
		log_info("packed into %llu places of %u tokens, at most %u in one", (unsigned long long)dataset_n_places(t->dataset),
			 (uint32_t)t->settings->sequence_length, dataset_per_place(t->dataset));
	return 0;
}

int corpus_take(struct trainer *t, const void *bytes, size_t n, const uint32_t *domain_ends, uint32_t n_domains, struct error *err)
{
	struct dataset_options o = options_make(t);
	struct content_id source;
	int r = dataset_decode(&o, bytes, n, &source, &t->dataset, err);
	if (r == 0)
		dataset_set_domains(t->dataset, domain_ends, n_domains);
	return r ? r : dataset_split(t->dataset, err);
}

// A sequence that has the answer to the first step's question but not to this one's.
static int step_check(struct trainer *t, uint64_t step, struct error *err)
{
	struct query query;
	struct sequence s = dataset_train_at(t->dataset, step * t->state.batch);
	bool has = true, had = true;
	uint32_t missing;
	char asked[CORPUS_WORDS] = "";
	questions_at(t, 0, step, &query);
	int r = panel_count(t, step, &s, 1, &has, &missing, err);
	if (r == 0 && !has)
		r = panel_count(t, 0, &s, 1, &had, &missing, err);
	query_say(&query, asked, sizeof asked);
	query_done(&query);
	if (r == 0 && !has && had)
		r = error_set(err, ERROR_NOT_FOUND, "loss", "a schedule asks %s at step %" PRIu64 ", which the shards do not hold",
			asked, step + 1);
	return r;
}

int corpus_check_schedules(struct trainer *t, struct error *err)
{
	uint64_t n = t->steps < CORPUS_STEPS_CHECKED ? t->steps : CORPUS_STEPS_CHECKED;
	int r = 0;
	for (uint64_t i = 0; r == 0 && i < n && panel_has_shards(t); i++)
		r = step_check(t, (uint64_t)((unsigned __int128)i * (t->steps - 1) / (n > 1 ? n - 1 : 1)), err);
	return r;
}
