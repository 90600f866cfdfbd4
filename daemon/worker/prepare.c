// SPDX-License-Identifier: Apache-2.0
// What a run needs before its first step, in the order in which a mistake is cheapest to find: the folder, the teacher, the tokenizer,
// the corpus, the student, the checkpoint.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/error.h"
#include "common/output.h"
#include "daemon/log.h"
#include "daemon/model/model.h"
#include "daemon/worker/answers.h"
#include "daemon/worker/corpus.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/export.h"
#include "daemon/worker/features_prepare.h"
#include "daemon/worker/layers.h"
#include "daemon/worker/mask.h"
#include "daemon/worker/lexicon.h"
#include "daemon/worker/panel.h"
#include "daemon/worker/partner.h"
#include "daemon/worker/policy.h"
#include "daemon/worker/questions.h"
#include "daemon/worker/resume.h"
#include "daemon/worker/rollout.h"
#include "daemon/worker/share.h"
#include "daemon/worker/team.h"
#include "daemon/worker/trainer.h"

#define PREPARE_TOKEN_MAX 256

static int path_make(struct trainer *t, const char *leaf, char **ret, struct error *err)
{
	return asprintf(ret, "%s/%s", t->options.output, leaf) < 0 ? error_set(err, ERROR_MEMORY, NULL, "out of memory") : 0;
}

// One worker at a time in a folder: the lock goes with the process, however it ends.
static int folder_open(struct trainer *t, struct error *err)
{
	char *path = NULL;
	if (team_rank(t->options.team))
		return 0;
	int r = output_folder(t->options.output, 0750, "output", err);
	r = r ? r : path_make(t, ".lock", &path, err);
	if (r)
		return r;
	t->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
	if (t->lock_fd < 0)
		r = error_system(err, errno, "output", "cannot open %s", path);
	else if (flock(t->lock_fd, LOCK_EX | LOCK_NB) < 0)
		r = error_set(err, ERROR_CONFLICT, "output", "another worker is at work in %s", t->options.output);
	free(path);
	return r;
}

static int paths_make(struct trainer *t, struct error *err)
{
	char *metrics = NULL;
	int r = path_make(t, "checkpoints", &t->checkpoints, err);
	r = r ? r : path_make(t, "student", &t->student_path, err);
	r = r ? r : path_make(t, "best.safetensors", &t->best_path, err);
	r = r ? r : path_make(t, "metrics.jsonl", &metrics, err);
	if (r == 0 && team_rank(t->options.team) == 0)
		r = progress_open(metrics, t->options.progress_fd, &t->progress, err);
	free(metrics);
	return r;
}

static int token_read(struct trainer *t, struct error *err)
{
	const char *path = t->settings->token_file;
	if (!path)
		return 0;
	FILE *f = fopen(path, "re");
	char line[PREPARE_TOKEN_MAX + 2] = "";
	if (!f)
		return error_system(err, errno, "token-file", "cannot open %s", path);
	bool good = fgets(line, sizeof line, f) != NULL;
	fclose(f);
	line[strcspn(line, "\r\n")] = '\0';
	if (!good || !*line || strlen(line) > PREPARE_TOKEN_MAX)
		return error_set(err, ERROR_INVALID, "token-file", "%s does not begin with a token of at most %d bytes", path,
			PREPARE_TOKEN_MAX);
	t->token = strdup(line);
	return t->token ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
}

// A store has one writer: process N keeps what it receives beside that of process 0, in DIR.N.
static int own_store_name(struct trainer *t, struct error *err)
{
	uint32_t rank = team_rank(t->options.team);
	const char *own = t->settings->store;
	if (!own)
		return 0;
	t->store = NULL;
	if ((rank ? asprintf(&t->store, "%s.%u", own, rank) : asprintf(&t->store, "%s", own)) >= 0)
		return 0;
	t->store = NULL;
	return error_set(err, ERROR_MEMORY, NULL, "out of memory");
}

// Who reads a file knows its path; which setting named it is known here.
static int name_setting(int r, const char *setting, struct error *err)
{
	if (r && err && (strstr(err->message, err->field) || strcmp(err->field, "teacher") == 0))
		snprintf(err->field, sizeof err->field, "%s", setting);
	return r;
}

static int teacher_open(struct trainer *t, struct error *err)
{
	const struct run_settings *s = t->settings;
	const char *shards = settings_shards(s);
	bool labels = settings_labels(s);
	if (!shards && !labels && !s->server)
		return error_set(err, ERROR_INVALID, "server", "is missing: where does the teacher answer? (or teacher = shards:DIR)");
	int r = labels ? name_setting(tokenizer_open_path(s->tokenizer ? s->tokenizer : s->student, &t->tokenizer, err),
				      s->tokenizer ? "tokenizer" : "student", err)
		: shards && !s->others.n ? 0 : token_read(t, err);
	r = r ? r : own_store_name(t, err);
	struct answers_options o = {.shards = shards, .labels = labels ? t->tokenizer : NULL, .max_tokens = (uint32_t)s->sequence_length,
				    .server = s->server, .ca = s->ca, .server_name = s->server_name, .teacher = s->teacher,
				    .teacher_id = s->teacher_id, .token = t->token,
				    .store_directory = t->store, .masked = s->mlm, .patience_ms = s->patience, .stop = t->options.stop};
	r = r ? r : answers_open(&o, &t->answers, err);
	return r ? r : panel_open(t, err);
}

// A shared vocabulary size is not a shared vocabulary: ids must mean the same bytes on both sides.
static int tokenizer_check(const struct trainer *t, const char *field, struct error *err)
{
	const struct answers_info *info = answers_info(t->answers);
	struct content_id own = tokenizer_id(t->tokenizer);
	if (tokenizer_vocab_size(t->tokenizer) > info->vocab_size)
		return error_set(err, ERROR_CONFLICT, field, "the tokenizer has %u ids, the teacher %u", tokenizer_vocab_size(t->tokenizer),
				 info->vocab_size);
	if (!info->described)
		log_warning("nothing says which tokenizer the teacher has: taking %s for it", field);
	else if (memcmp(&own, &info->provenance.tokenizer, sizeof own) != 0)
		return error_set(err, ERROR_CONFLICT, field, "is not the tokenizer that the teacher's answers were made with");
	return 0;
}

static int tokenizer_fetch(struct trainer *t, struct error *err)
{
	char *body = NULL;
	size_t n = 0;
	int r = answers_get(t->answers, "/v1/tokenizer", &body, &n, err);
	r = r ? r : tokenizer_open_json(body, n, &t->tokenizer, err);
	free(body);
	body = NULL;
	r = r ? r : answers_get(t->answers, "/v1/tokenizer_config", &body, &n, err);
	r = r ? r : tokenizer_read_ends(t->tokenizer, body, n, err);
	free(body);
	return r;
}

// From where it was said to be; else the server's; else (shards) that of the student to start from.
static int tokenizer_open(struct trainer *t, struct error *err)
{
	const struct run_settings *s = t->settings;
	const char *path = s->tokenizer ? s->tokenizer : settings_shards(s) ? s->student : NULL;
	if (t->tokenizer)
		return 0;                                      // labels are of its own making
	int r = path ? name_setting(tokenizer_open_path(path, &t->tokenizer, err), s->tokenizer ? "tokenizer" : "student", err)
		: tokenizer_fetch(t, err);
	r = r ? r : tokenizer_check(t, !path ? "server" : s->tokenizer ? "tokenizer" : "student", err);
	return r ? r : panel_check_tokenizers(t, err);
}

static const struct tokenizer *own_tokenizer(const struct trainer *t)
{
	return t->student_tokenizer ? t->student_tokenizer : t->tokenizer;
}

static struct architecture random_architecture(const struct trainer *t, uint32_t vocab_size)
{
	const struct run_settings *s = t->settings;
	struct architecture a = {
		.name = "llama", .n_layers = (uint32_t)s->layers, .width = (uint32_t)s->width, .ffn_width = (uint32_t)s->ffn_width,
		.n_heads = (uint32_t)s->heads, .n_kv_heads = (uint32_t)s->kv_heads, .head_size = (uint32_t)(s->width / s->heads),
		.vocab_size = vocab_size, .context_length = (uint32_t)s->context_length, .norm_epsilon = 1e-5f, .rope_theta = s->rope_theta,
		.tied_head = s->tied_head, .bos_id = tokenizer_bos(own_tokenizer(t)), .eos_id = tokenizer_eos(own_tokenizer(t)),
	};
	if (s->family == RUN_FAMILY_BERT) {
		snprintf(a.name, sizeof a.name, "bert");
		a.n_kv_heads = a.n_heads;
		a.norm = NORM_LAYER;
		a.norm_epsilon = 1e-12f;
		a.activation = ACTIVATION_GELU_ERF;
		a.n_token_types = 2;
		a.masked = a.post_norm = a.learned_positions = a.out_bias = a.ffn_bias = a.qkv_bias = true;
	} else if (s->family == RUN_FAMILY_GPT2) {
		snprintf(a.name, sizeof a.name, "gpt2");
		a.n_kv_heads = a.n_heads;
		a.norm = NORM_LAYER;
		a.activation = ACTIVATION_GELU_TANH;
		a.learned_positions = a.out_bias = a.ffn_bias = a.qkv_bias = true;
	}
	return a;
}

static int same_tokenizer(const struct trainer *t, struct model_file *file, struct error *err)
{
	struct tokenizer *own = NULL;
	int r = model_file_tokenizer(file, &own, err);
	if (r)
		return r;
	struct content_id a = tokenizer_id(own), b = tokenizer_id(own_tokenizer(t));
	tokenizer_close(own);
	if (memcmp(&a, &b, sizeof a) != 0)
		return error_set(err, ERROR_CONFLICT, "student", t->student_tokenizer ? "its tokenizer is not student-tokenizer"
				 : "its tokenizer is not the teacher's (student-tokenizer = this very path, to learn across tokenizers)");
	return 0;
}

static int any_student_open(struct trainer *t, const struct student_options *options, const struct architecture *a,
			    const struct tensor_source *source, struct error *err)
{
	struct student_options o = *options;
	int r = export_check(a, err);
	r = r ? r : features_prepare(t, a, err);
	o.features = t->features;
	return r ? r : student_open(&o, a, source, &t->student, err);
}

static int given_student_open(struct trainer *t, const struct student_options *o, uint32_t vocab_size, struct error *err)
{
	struct model_file *file = NULL;
	struct layers layers;
	int r = name_setting(model_file_open(t->settings->student, &file, err), "student", err);
	r = r ? r : same_tokenizer(t, file, err);
	if (r)
		goto out;
	struct architecture shape = *model_file_architecture(file);
	const struct architecture *a = &shape;
	struct tensor_source source = model_file_source(file);
	if (t->settings->from_layers) {
		r = layers_parse(t->settings->from_layers, a->n_layers, &layers, err);
		if (r)
			goto out;
		source = layers_source(&layers, &source);
		shape.n_layers = layers.n;
	}
	if (a->masked != t->settings->mlm)
		r = error_set(err, ERROR_UNSUPPORTED, "student", a->masked ? "%s names masked tokens: that is learned with mlm = yes" :
			      "mlm = yes, but %s does not name masked tokens", a->name);
	else if (a->vocab_size != vocab_size)
		r = error_set(err, ERROR_CONFLICT, "student", "its vocabulary has %u tokens, %u are expected", a->vocab_size, vocab_size);
	else if (a->context_length < o->sequence_length)
		r = error_set(err, ERROR_INVALID, "sequence-length", "%u is more than the student's context of %u", o->sequence_length,
			      a->context_length);
	else
		r = any_student_open(t, o, a, &source, err);
out:
	model_file_close(file);
	return r;
}

static int student_prepare(struct trainer *t, uint32_t vocab_size, struct error *err)
{
	const struct run_settings *s = t->settings;
	struct rollout_options rollout;
	static const enum backend_numeric numerics[] = {
		[RUN_PRECISION_AUTO] = BACKEND_NUMERIC_AUTO, [RUN_PRECISION_F32] = BACKEND_NUMERIC_F32,
		[RUN_PRECISION_BF16] = BACKEND_NUMERIC_BF16,
	};
	struct student_options o = {
		.device = settings_device(s), .n_threads = (uint32_t)s->threads, .numeric = numerics[s->precision],
		.sequence_length = t->student_length,
		.micro_batch = (uint32_t)s->micro_batch, .top_k = t->held_out_query.top_k, .seed = (uint64_t)s->seed,
		.objective = t->objective, .n_arrays = optimizer_n_arrays(&t->optimizing), .bridge = t->bridged ? &t->bridge : NULL,
		.id_bytes = t->id_bytes, .recompute = s->checkpointing ? (uint32_t)s->checkpointing_layers : 0,
	};
	if (t->policy) {
		policy_rollout_options(t->policy, s, tokenizer_eos(t->tokenizer), &rollout);
		o.rollout = &rollout;
	}
	if (strcmp(s->student, "random") != 0)
		return given_student_open(t, &o, vocab_size, err);
	struct architecture a = random_architecture(t, vocab_size);
	int r = architecture_check(&a, err);
	return r ? r : any_student_open(t, &o, &a, NULL, err);
}

// The teacher as a second writer, where tokens are given to it.
static int partner_prepare(struct trainer *t, struct rollout_options *o, struct error *err)
{
	const struct partner_options p = {.server = t->settings->server, .token = t->token, .ca = t->settings->ca,
					  .server_name = t->settings->server_name, .teacher = &answers_info(t->answers)->teacher,
					  .patience_ms = t->settings->patience, .seed = o->seed, .stop = t->options.stop};
	o->teacher = partner_write;
	int r = o->mix > 0 ? partner_open(&p, &t->partner, err) : 0;
	o->teacher_arg = t->partner;
	return r;
}

// On the student's device, which was opened with room for it.
static int rollout_prepare(struct trainer *t, struct error *err)
{
	struct rollout_options o;
	if (!t->policy)
		return 0;
	if (policy_begin(t->policy, t->steps, t->state.batch, t->student_vocab))
		return error_set(err, ERROR_MEMORY, "rollout-replay", "no memory for %lld sequences",
			(long long)t->settings->rollout_replay);
	policy_rollout_options(t->policy, t->settings, tokenizer_eos(t->tokenizer), &o);
	int r = partner_prepare(t, &o, err);
	return r ? r : rollout_open(student_weights(t->student), student_head(t->student), &o, &t->rollout, err);
}

// What a run is trained on: the list of sequences and, where the student reads them in its own way, that.
static struct content_id list_id(const struct trainer *t)
{
	struct content_id parts[2] = {dataset_id(t->dataset)};
	if (!t->student_tokenizer)
		return parts[0];
	parts[1] = tokenizer_id(t->student_tokenizer);
	return content_id_of(parts, sizeof parts);
}

static void plan_make(struct trainer *t)
{
	const struct run_settings *s = t->settings;
	uint64_t batch = (uint64_t)(s->micro_batch * s->accumulate);
	uint64_t each = s->rollout_pairs && settings_rollouts(s) ? 2 : 1;      // how often a sequence stands in its step
	double by_epochs = ceil(s->epochs * (double)(each * dataset_n_places(t->dataset)) / (double)batch);
	t->steps = s->steps ? (uint64_t)s->steps : (uint64_t)fmax(1, fmin(by_epochs, 1e9));
	t->state.seed = (uint64_t)s->seed;
	t->state.sequence_length = (uint64_t)s->sequence_length;
	t->state.batch = batch;
	t->state.dataset = list_id(t);
	t->state.n_held_out = dataset_n_held_out(t->dataset);
	t->state.sequential = s->order == RUN_ORDER_SEQUENTIAL;
	t->state.n_adaptive = objective_n_state(t->objective);
	t->state.domains.n = dataset_n_domains(t->dataset);
}

static int objective_prepare(struct trainer *t, struct error *err)
{
	char words[320];
	objective_seed(t->objective, (uint64_t)t->settings->seed);
	if (objective_begin(t->objective, t->steps, t->student_vocab))
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t i = 0; i < objective_n_terms(t->objective); i++) {
		const char *bias = objective_bias(t->objective, i, t->vocab_size);
		objective_describe(t->objective, i, words, sizeof words);
		log_info("loss %s", words);
		if (bias)
			log_notice("loss %s: %s", objective_name(t->objective, i), bias);
	}
	t->report.objective = t->objective;
	return 0;
}

static void reweight_prepare(struct trainer *t)
{
	static const char *const names[] = {"off", "linear-upper", "quadratic", "extremes"};
	const struct run_settings *s = t->settings;
	t->reweight = (struct reweight){(enum reweight_kind)s->reweight, s->reweight_strength, s->reweight_temperature};
	if (s->reweight)
		log_info("sequences of a micro-batch weigh by their losses: %s, delta %g, r %g, after %lld steps", names[s->reweight],
			 s->reweight_strength, s->reweight_temperature, (long long)s->reweight_after);
}

// What the optimizer will be: the student's device is opened with room for its arrays.
static int optimizer_plan(struct trainer *t, struct error *err)
{
	static const uint32_t bits[] = {[RUN_QUANTIZE_NONE] = 0, [RUN_QUANTIZE_INT8] = 8, [RUN_QUANTIZE_INT4] = 4};
	const struct run_settings *s = t->settings;
	t->groups = calloc(s->parameters.n ? s->parameters.n : 1, sizeof *t->groups);
	if (!t->groups)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (size_t i = 0; i < s->parameters.n; i++) {
		int r = group_parse(s->parameters.items[i], &t->groups[i], err);
		if (r)
			return r;
	}
	t->optimizing = (struct optimizer_options){
		.kind = s->optimizer == RUN_OPTIMIZER_LION ? OPTIMIZER_LION : OPTIMIZER_ADAMW, .learning_rate = s->learning_rate,
		.min_ratio = s->min_ratio, .warmup = (uint64_t)s->warmup, .steps = t->steps, .beta1 = s->beta1, .beta2 = s->beta2,
		.epsilon = s->epsilon, .weight_decay = s->weight_decay, .clip = s->clip, .groups = t->groups, .n_groups = s->parameters.n,
		.average = s->average, .bits = bits[s->quantize],
	};
	return 0;
}

static int own_prepare(struct trainer *t, struct error *err)
{
	int r = settings_objective(t->settings, &t->objective, err);
	r = r ? r : folder_open(t, err);
	r = r ? r : paths_make(t, err);
	if (r)
		return r;
	trainer_say(t, "starting");
	r = teacher_open(t, err);
	if (r)
		return r;
	t->vocab_size = answers_info(t->answers)->vocab_size;
	r = features_resolve(t, err);
	if (r)
		return r;
	questions_prepare(t);
	r = tokenizer_open(t, err);
	if (r == 0 && t->settings->mlm)
		r = mask_new(t->tokenizer, t->settings->mlm_probability, (uint64_t)t->settings->seed, &t->mask, err);
	r = r ? r : share_corpus(t, err);
	r = r ? r : features_probe(t, err);
	r = r ? r : lexicon_prepare(t, err);
	if (r)
		return r;
	plan_make(t);
	r = objective_prepare(t, err);
	r = r ? r : optimizer_plan(t, err);
	r = r ? r : corpus_check_schedules(t, err);
	reweight_prepare(t);
	r = r ? r : policy_new(t->settings, &t->policy, err);
	r = r ? r : student_prepare(t, t->student_vocab, err);
	r = r ? r : rollout_prepare(t, err);
	r = r ? r : optimizer_new(&t->optimizing, student_weights(t->student), &t->optimizer, err);
	return r ? r : resume_load(t, err);
}

// The rule of capacity is a hint: what a run is told of, not what it is refused for.
static void capacity_say(struct trainer *t)
{
	double n_student = (double)t->report.n_parameters, n_teacher = (double)answers_info(t->answers)->n_parameters;
	double best = guard_best_teacher(n_student), ratio = n_teacher / best;
	if (n_teacher <= 0)
		return;
	t->report.teacher_parameters = n_teacher;
	t->report.best_teacher = best;
	log_info("teacher of %.1f M parameters, student of %.1f M: the law of capacity gap names a teacher of about %.1f M%s",
		 n_teacher / 1e6, n_student / 1e6, best / 1e6, ratio > 4 ? "; a chain over one in between may teach it better (takd.conf)" :
		 ratio < 0.25 ? "; this one may have little to teach" : "");
}

int trainer_prepare(struct trainer *t, struct error *err)
{
	int r = share_agree(t, own_prepare(t, err), err);
	r = r ? r : share_start(t, err);
	if (r)
		return r;
	t->report.device = student_device(t->student);
	log_info("training on %s", student_device(t->student));
	log_info("activations of a micro-batch need %.1f MiB%s", (double)student_activation_bytes(t->student) / (1 << 20),
		 t->settings->checkpointing ? ", with gradient checkpointing" : "");
	t->report.n_parameters = student_weights(t->student)->parameters->n_model_values;
	t->report.guard_residual = NAN;
	t->report.guard_alarms = t->state.guard.alarms;
	capacity_say(t);
	t->asked = t->state.position;
	t->ahead = TRAINER_AHEAD;
	size_t n_sequences = (size_t)t->settings->micro_batch * dataset_per_place(t->dataset);
	t->rows = calloc(n_sequences * objective_n_teachers(t->objective), sizeof *t->rows);
	return t->rows ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
}
