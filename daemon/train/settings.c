// SPDX-License-Identifier: Apache-2.0
#include "daemon/train/settings_internal.h"

#include <string.h>

#include "common/error.h"
#include "common/sequence.h"
#include "daemon/loss/objective.h"
#include "daemon/loss/objective_feature.h"
#include "daemon/loss/schedule.h"
#include "daemon/train/group.h"
#include "daemon/train/other.h"

#define OPTION(field, name, type, min, max, fallback, choices, unit, help) \
	{name, CONFIG_##type, min, max, fallback, choices, unit, help, offsetof(struct run_settings, field), 0, false},
static const struct config_option table[] = {
#include "daemon/train/run.def"
};
#undef OPTION

#define N_OPTIONS (sizeof table / sizeof *table)

const struct config_option *settings_table(size_t *ret_n)
{
	*ret_n = N_OPTIONS;
	return table;
}

int settings_init(struct run_settings *s, struct error *err)
{
	memset(s, 0, sizeof *s);
	return config_init(table, N_OPTIONS, s, err);
}

void settings_done(struct run_settings *s)
{
	config_done(table, N_OPTIONS, s);
	memset(s, 0, sizeof *s);
}

static int student_check(const struct run_settings *s, struct error *err)
{
	if (strcmp(s->student, "random") != 0)
		return 0;
	if (s->from_layers)
		return error_set(err, ERROR_INVALID, "student-from-layers", "is set, but student is random: which model's layers?");
	if (settings_is_llama(s) && s->heads % s->kv_heads)
		return error_set(err, ERROR_INVALID, "student-kv-heads", "%lld does not divide student-heads (%lld)",
				 (long long)s->kv_heads, (long long)s->heads);
	if (s->width % s->heads || (s->width / s->heads) % 2)
		return error_set(err, ERROR_INVALID, "student-width", "%lld is not an even head size times student-heads (%lld)",
				 (long long)s->width, (long long)s->heads);
	if (s->context_length < s->sequence_length && !s->student_tokenizer)
		return error_set(err, ERROR_INVALID, "student-context", "%lld is less than sequence-length (%lld)",
				 (long long)s->context_length, (long long)s->sequence_length);
	return 0;
}

const char *settings_shards(const struct run_settings *s)
{
	static const char prefix[] = "shards:";
	return s->teacher && strncmp(s->teacher, prefix, sizeof prefix - 1) == 0 ? s->teacher + sizeof prefix - 1 : NULL;
}

static int shards_check(const struct run_settings *s, const char *shards, struct error *err)
{
	if (!*shards)
		return error_set(err, ERROR_INVALID, "teacher", "shards: names no directory");
	if (s->server)
		return error_set(err, ERROR_INVALID, "server", "is set and teacher = shards:...: a run learns from one of the two");
	if (s->store)
		return error_set(err, ERROR_INVALID, "store", "keeps what a server says; with teacher = shards:... nothing is received");
	if (!s->tokenizer && strcmp(s->student, "random") == 0)
		return error_set(err, ERROR_INVALID, "tokenizer", "is missing: with teacher = shards:... there is no server to ask for it");
	return 0;
}

bool settings_labels(const struct run_settings *s)
{
	return s->teacher && strcmp(s->teacher, "labels") == 0;
}

static int labels_check(const struct run_settings *s, struct error *err)
{
	if (s->server)
		return error_set(err, ERROR_INVALID, "server", "is set and teacher = labels: a run learns from one of the two");
	if (s->store)
		return error_set(err, ERROR_INVALID, "store", "keeps what a server says; with teacher = labels nothing is received");
	if (!s->tokenizer && strcmp(s->student, "random") == 0)
		return error_set(err, ERROR_INVALID, "tokenizer", "is missing: with teacher = labels there is no server to ask for it");
	return 0;
}

static int teacher_check(const struct run_settings *s, struct error *err)
{
	struct content_id id;
	const char *shards = settings_shards(s);
	if ((s->ca || s->server_name) && (!s->server || strncmp(s->server, "tls:", 4) != 0))
		return error_set(err, ERROR_INVALID, s->ca ? "ca" : "server-name", "is for server = tls:HOST:PORT");
	if (s->teacher_id && content_id_from_hex(s->teacher_id, &id))
		return error_set(err, ERROR_INVALID, "teacher-id", "64 hexadecimal digits are expected");
	if (shards)
		return shards_check(s, shards, err);
	int r = settings_labels(s) ? labels_check(s, err) : 0;
	if (r == 0 && s->corpus.n == 0)
		return error_set(err, ERROR_INVALID, "corpus", "is missing: name at least one text file");
	return r;
}

int settings_objective(const struct run_settings *s, struct objective **ret, struct error *err)
{
	struct objective *o = NULL;
	int r = objective_new(&o) ? error_set(err, ERROR_MEMORY, "loss", "out of memory") : 0;
	for (size_t i = 0; r == 0 && i < s->losses.n; i++)
		r = objective_add(o, s->losses.items[i], s->losses.where[i], err);
	if (r == 0 && s->losses.n == 0)
		r = objective_add(o, OBJECTIVE_DEFAULT, "default", err);
	r = r ? r : objective_check(o, err);
	if (r) {
		objective_free(o);
		return r;
	}
	*ret = o;
	return 0;
}

// Each teacher that a loss names has a line of its own.
static int teachers_check(const struct run_settings *s, const struct objective *o, struct error *err)
{
	int r = other_check(&s->others, err);
	for (uint32_t i = 1; r == 0 && i < objective_n_teachers(o); i++) {
		struct other other;
		const char *where, *name = objective_teacher_name(o, i);
		r = other_find(&s->others, name, &other, &where, err);
		other_done(&other);
		if (r == error_errno(ERROR_NOT_FOUND))
			r = error_set(err, ERROR_INVALID, "loss", "%s: loss: teacher=%s: no line other-teacher has this name",
				      objective_teacher_where(o, i), name);
	}
	return r;
}

static bool others_shards(const struct run_settings *s)
{
	bool any = false;
	for (size_t i = 0; i < s->others.n; i++) {
		struct other other;
		any |= other_parse(s->others.items[i], s->others.where[i], &other, &(struct error){0}) == 0 && other.shards;
		other_done(&other);
	}
	return any;
}

static int losses_check(const struct run_settings *s, struct error *err)
{
	struct objective *o = NULL;
	int64_t n_positions = s->micro_batch * s->sequence_length;
	int r = settings_objective(s, &o, err);
	if (r)
		return r;
	int64_t width = objective_width(o, UINT32_MAX);
	uint32_t own_k = objective_any_own_k(o);
	bool asks = objective_asks_teacher(o);
	r = teachers_check(s, o, err);
	r = r || !s->student_tokenizer ? r : objective_check_foreign(o, err);
	objective_free(o);
	if (r)
		return r;
	if (settings_labels(s) && asks)
		return error_set(err, ERROR_UNSUPPORTED, "loss",
			"teacher = labels knows the next token alone: cross-entropy is the loss for it");
	if (own_k && (settings_shards(s) || others_shards(s)))
		return error_set(err, ERROR_UNSUPPORTED, "loss",
			"support=student and support=both need a live teacher: shards hold what was asked");
	if (n_positions > (INT64_C(1) << 28) / width)
		return error_set(err, ERROR_TOO_LARGE, "loss", "%lld ids for each of %lld positions are too many to hold at once",
				 (long long)width, (long long)n_positions);
	return 0;
}

// What is asked of the teacher must be of its own vocabulary.
static int vocabulary_check(const struct run_settings *s, struct error *err)
{
	if (s->student_tokenizer && settings_rollouts(s))
		return error_set(err, ERROR_UNSUPPORTED, "student-tokenizer",
				 "and rollouts: the teacher cannot read what a student of another tokenizer writes");
	if (s->student_tokenizer && settings_labels(s))
		return error_set(err, ERROR_INVALID, "student-tokenizer", "and teacher = labels: without a teacher there is one tokenizer");
	if (s->student_tokenizer && s->corpus_prompt)
		return error_set(err, ERROR_UNSUPPORTED, "student-tokenizer",
				 "and corpus-prompt: where a prompt ends is counted in the teacher's tokens");
	if (s->student_tokenizer && s->packing == RUN_PACKING_BFD)
		return error_set(err, ERROR_UNSUPPORTED, "student-tokenizer",
				 "and packing = bfd: how long a document becomes is not the teacher's to say (wrapped or off)");
	return 0;
}

static int optimizer_check(const struct run_settings *s, struct error *err)
{
	struct group g;
	if (s->parameters.n > GROUP_MAX)
		return error_set(err, ERROR_TOO_LARGE, "parameters", "at most %d lines", GROUP_MAX);
	for (size_t i = 0; i < s->parameters.n; i++) {
		int r = group_parse(s->parameters.items[i], &g, err);
		if (r)
			return r;
	}
	return 0;
}

static bool is_lines(const char *path)
{
	size_t n = strlen(path);
	return n >= 6 && strcmp(path + n - 6, ".jsonl") == 0;
}

static int prompts_check(const struct run_settings *s, struct error *err)
{
	for (size_t i = 0; s->corpus_prompt && i < s->corpus.n; i++)
		if (!is_lines(s->corpus.items[i]))
			return error_set(err, ERROR_INVALID, "corpus-prompt", "%s: only lines of a .jsonl corpus have prompts",
				s->corpus.items[i]);
	if (s->corpus_prompt && settings_shards(s))
		return error_set(err, ERROR_UNSUPPORTED, "corpus-prompt", "shards hold sequences, not which of their tokens are prompts");
	return 0;
}

static int mlm_check(const struct run_settings *s, struct error *err)
{
	struct objective *o = NULL;
	bool bert = s->family == RUN_FAMILY_BERT;
	if (strcmp(s->student, "random") == 0 && bert != s->mlm)
		return error_set(err, ERROR_INVALID, "student-family", "bert and mlm = yes go together");
	if (!s->mlm)
		return 0;
	if (settings_shards(s) || settings_labels(s))
		return error_set(err, ERROR_UNSUPPORTED, "mlm", "needs a live teacher: what is masked is drawn anew in every epoch");
	if (s->corpus_prompt)
		return error_set(err, ERROR_UNSUPPORTED, "corpus-prompt", "is for models that go on from a prompt (mlm = yes)");
	if (settings_rollouts(s))
		return error_set(err, ERROR_UNSUPPORTED, "rollouts", "a student that names masked tokens writes nothing (mlm = yes)");
	int r = settings_objective(s, &o, err);
	if (r)
		return r;
	if (objective_any_own_k(o))
		r = error_set(err, ERROR_UNSUPPORTED, "loss",
			"support=student and support=both are about the token that follows (mlm = yes)");
	objective_free(o);
	return r;
}

static int domains_check(const struct run_settings *s, struct error *err)
{
	const char *why = NULL;
	if (!s->domains)
		return 0;
	if (s->corpus.n < 2)
		why = "two or more lines corpus are expected, a file for each domain";
	else if (settings_shards(s) || settings_labels(s) || s->others.n)
		why = "one live teacher is expected, whose perplexity each domain has";
	else if (s->mlm || s->student_tokenizer)
		why = "the student's perplexity is compared with the teacher's: of the tokens that follow, and of one tokenizer";
	else if (settings_rollouts(s))
		why = "what the student writes is of no domain";
	else if (s->packing == RUN_PACKING_BFD)
		why = "packing = bfd puts documents of several domains into one place";
	else if (s->held_out <= 0)
		why = "held-out = 0 leaves nothing to measure domains by";
	return why ? error_set(err, ERROR_UNSUPPORTED, "domains", "%s", why) : 0;
}

static int reweight_check(const struct run_settings *s, struct error *err)
{
	struct objective *o = NULL;
	const char *why = NULL;
	uint32_t term = 0;
	int r = s->reweight ? settings_objective(s, &o, err) : 0;
	if (r || !s->reweight)
		return r;
	if (objective_has_features(o))
		why = "losses on features are of a micro-batch, not of its sequences";
	else if (objective_wants_rollouts(o, &term))
		why = "a loss on what the student writes is no measure of a sequence";
	else if (s->micro_batch < 2 && s->packing != RUN_PACKING_BFD)
		why = "sequences are weighed within a micro-batch: micro-batch = 2 or more is expected";
	objective_free(o);
	return why ? error_set(err, ERROR_UNSUPPORTED, "reweight", "%s", why) : 0;
}

int settings_check(const struct run_settings *s, struct error *err)
{
	if (!s->student)
		return error_set(err, ERROR_INVALID, "student", "is empty: random, or the path of a model");
	int r = teacher_check(s, err);
	r = r ? r : optimizer_check(s, err);
	r = r ? r : settings_check_rollouts(s, err);
	r = r ? r : prompts_check(s, err);
	r = r ? r : mlm_check(s, err);
	r = r ? r : reweight_check(s, err);
	r = r ? r : domains_check(s, err);
	r = r ? r : vocabulary_check(s, err);
	if (r)
		return r;
	if (!s->corpus_field)
		return error_set(err, ERROR_INVALID, "corpus-field", "is empty: which member of a line is the text?");
	if (s->steps == 0 && s->epochs == 0)
		return error_set(err, ERROR_INVALID, "steps", "is 0 and so is epochs");
	if (s->micro_batch * s->sequence_length > 1 << 20)
		return error_set(err, ERROR_TOO_LARGE, "micro-batch", "%lld sequences of %lld tokens are over 1048576 positions",
				 (long long)s->micro_batch, (long long)s->sequence_length);
	r = losses_check(s, err);
	return r ? r : student_check(s, err);
}

bool settings_is_llama(const struct run_settings *s)
{
	return s->family == RUN_FAMILY_LLAMA;
}

const char *settings_device(const struct run_settings *s)
{
	static const char *const names[] = {"auto", "cpu", "cuda", "ref"};
	return names[s->device];
}
