// SPDX-License-Identifier: Apache-2.0
// Loading, the engine thread and its loop. The answers themselves are made in answer.c.
#include "daemon/teacher/teacher.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/model/cache.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/model.h"
#include "daemon/teacher/answer.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/generator.h"
#include "daemon/teacher/schedule.h"
#include "kernels/backend.h"

#define CODEC_VERSION "2"     // of records; part of the fingerprint, so that a new codec never answers from old bytes

struct teacher {
	struct teacher_options options;
	char *path, *device;
	struct queue *queue;
	pthread_t thread;
	_Atomic(enum teacher_state) state;
	struct error error;                    // written before state becomes FAILED
	struct teacher_info info;              // written before state becomes READY
	// the engine's alone, once the thread runs
	struct model_file *file;               // open for teacher_read_rows
	struct tokenizer *tokenizer;           // immutable: any thread may use it after READY
	struct backend *backend;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	struct answer *answer;
	struct schedule schedule;
	// counters
	atomic_uint_fast64_t n_passes, n_mixed, n_sequences, n_positions, n_rows, n_dropped, n_not_finite, pass_began_ms;
	atomic_uint_fast64_t n_shared, n_slots_used, n_slots_idle;
	struct generator_counters generated;
	struct histogram pass_seconds;
};

static uint32_t smaller(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

static void set_state(struct teacher *t, enum teacher_state state)
{
	const uint64_t one = 1;
	atomic_store(&t->state, state);
	if (t->options.event_fd >= 0 && write(t->options.event_fd, &one, sizeof one) < 0)
		return;    // EAGAIN: the reader is awake already
}

static void fingerprint_info(struct teacher_info *info)
{
	static const char label[] = "kdserved teacher 1\n";
	struct hasher *h = hasher_new();
	hasher_update(h, label, sizeof label - 1);
	hasher_update(h, info->weights_id.bytes, sizeof info->weights_id.bytes);
	hasher_update(h, info->tokenizer_id.bytes, sizeof info->tokenizer_id.bytes);
	hasher_update(h, info->numeric, strlen(info->numeric) + 1);
	hasher_update(h, CODEC_VERSION, strlen(CODEC_VERSION) + 1);
	info->fingerprint = hasher_free(h);
}

static void name_info(struct teacher_info *info, const char *path)
{
	size_t n = strlen(path);
	while (n > 1 && path[n - 1] == '/')
		n--;
	size_t from = n;
	while (from && path[from - 1] != '/')
		from--;
	snprintf(info->name, sizeof info->name, "%.*s", (int)(n - from), path + from);
}

static int describe(struct teacher *t, struct model_file *file, struct error *err)
{
	struct teacher_info *info = &t->info;
	int r = model_file_weights_id(file, &info->weights_id, err);
	if (r)
		return r;
	info->tokenizer_id = tokenizer_id(t->tokenizer);
	info->n_parameters = architecture_n_parameters(&info->architecture);
	name_info(info, t->path);
	snprintf(info->dtype, sizeof info->dtype, "%s", model_file_dtype(file));
	snprintf(info->numeric, sizeof info->numeric, "%s", t->backend->numeric);
	snprintf(info->device, sizeof info->device, "%s", t->backend->ops->name);
	snprintf(info->description, sizeof info->description, "%s", t->backend->description);
	fingerprint_info(info);
	return 0;
}

static int open_backend(struct teacher *t, uint32_t max_rows, struct error *err)
{
	const char *numeric = t->options.numeric;
	struct backend_options options = {.n_threads = t->options.n_threads, .max_rows = max_rows};
	if (strcmp(numeric, "f32") == 0)
		options.numeric = BACKEND_NUMERIC_F32;
	if (strcmp(numeric, "bf16") == 0)
		options.numeric = BACKEND_NUMERIC_BF16;
	return backend_open(t->device, &options, &t->backend, err);
}

static int open_answer(struct teacher *t, uint32_t capacity, struct error *err)
{
	const struct teacher_info *info = &t->info;
	struct answer_limits limits = {.max_tokens = info->max_tokens, .max_items = capacity, .max_top_k = info->max_top_k,
				       .max_gather = t->options.max_gather, .max_draws = t->options.max_draws};
	return answer_open(t->backend, &info->architecture, &limits, &t->answer, err);
}

// The cache is for generation, and for scores that begin alike.
static int open_generator(struct teacher *t, struct error *err)
{
	const struct teacher_info *info = &t->info;
	if (!t->options.cache_tokens)
		return 0;
	int r = cache_open(t->weights, t->options.cache_tokens, &t->schedule.cache, err);
	if (r)
		return r;
	activations_cache(t->activations, t->schedule.cache);
	struct generator_options options = {.backend = t->backend, .head = t->head, .cache = t->schedule.cache, .tokenizer = t->tokenizer,
		.vocab_size = info->architecture.vocab_size, .max_active = t->options.max_generating, .max_top_k = info->max_top_k,
		.eos_ids = {info->architecture.eos_id, tokenizer_eos(t->tokenizer)}, .counters = &t->generated};
	return generator_open(&options, &t->schedule.generator, err);
}

// Every buffer the engine will ever use is made here.
static int load_model(struct teacher *t, struct model_file *file, struct error *err)
{
	struct teacher_info *info = &t->info;
	info->architecture = *model_file_architecture(file);
	info->max_tokens = smaller(t->options.max_tokens, info->architecture.context_length);
	info->max_top_k = smaller(t->options.max_top_k, info->architecture.vocab_size);
	uint32_t capacity = larger(t->options.batch_tokens, info->max_tokens);
	capacity = larger(capacity, t->options.cache_tokens ? t->options.max_generating + SCHEDULE_MIN_PROMPT : 0);
	struct tensor_source source = model_file_source(file);
	int r = model_file_tokenizer(file, &t->tokenizer, err);
	if (!r)
		r = open_backend(t, capacity, err);
	if (!r)
		r = weights_load(t->backend, &info->architecture, &source, info->max_tokens, &t->weights, err);
	if (!r)
		r = activations_new(t->weights, capacity, false, &t->activations, err);
	if (!r)
		r = head_open(t->weights, ANSWER_CHUNK_ROWS, &t->head, err);
	if (!r)
		r = open_answer(t, capacity, err);
	if (!r)
		r = open_generator(t, err);
	if (!r)
		r = batch_new(capacity, &t->schedule.batch, err);
	if (!r)
		r = backend_sync(t->backend, err);
	return r ? r : describe(t, file, err);
}

static int load(struct teacher *t, struct error *err)
{
	double began = clock_seconds();
	int r = model_file_open(t->path, &t->file, err);
	if (!r)
		r = load_model(t, t->file, err);
	t->info.load_seconds = clock_seconds() - began;
	return r;
}

static void unload(struct teacher *t)
{
	batch_free(t->schedule.batch);
	generator_close(t->schedule.generator);
	cache_close(t->schedule.cache);
	answer_close(t->answer);
	head_close(t->head);
	activations_free(t->activations);
	weights_free(t->weights);
	backend_close(t->backend);
	t->schedule = (struct schedule){0};
	t->answer = NULL;
	t->head = NULL;
	t->activations = NULL;
	t->weights = NULL;
	t->backend = NULL;
}

// A device failure is final: what a poisoned device computes looks like an answer and is not one.
static void poison(struct teacher *t, const struct error *why)
{
	if (atomic_load(&t->state) == TEACHER_FAILED)
		return;
	t->error = *why;
	set_state(t, TEACHER_FAILED);
}

static void give_back(struct request_item *item, enum error_code code, const char *message)
{
	if (code)
		error_set(&item->error, code, NULL, "%s", message);
	item->request->computed(item);
}

// Work nobody waits for any more is not done: true with the reason in item->error.
static bool is_over(void *arg, struct request_item *item)
{
	struct teacher *t = arg;
	const struct request *r = item->request;
	if (atomic_load(&t->state) == TEACHER_FAILED)
		error_set(&item->error, ERROR_UNAVAILABLE, NULL, "the teacher failed; the server must be restarted");
	else if (atomic_load(&r->cancelled))
		error_set(&item->error, ERROR_CANCELLED, NULL, "the client left");
	else if (r->deadline_ms && clock_ms() > r->deadline_ms)
		error_set(&item->error, ERROR_DEADLINE, NULL, "the deadline passed before the teacher came to %s", item->generation ? "its end" : "it");
	else
		return false;
	atomic_fetch_add(&t->n_dropped, 1);
	return true;
}

static void take_in(struct teacher *t, struct request_item *item)
{
	if (is_over(t, item))
		item->request->computed(item);
	else if (item->generation)
		generator_submit(t->schedule.generator, item);
	else
		batch_backlog_append(&t->schedule.scores, &item->link);
}

static void count_slots(struct teacher *t)
{
	if (!t->schedule.cache)
		return;
	struct cache_usage u = cache_usage(t->schedule.cache);
	atomic_store(&t->n_slots_used, u.n_used);
	atomic_store(&t->n_slots_idle, u.n_idle);
}

// Takes in what waits, and drops what is over. False when there is nothing left to do, ever.
static bool collect(struct teacher *t)
{
	struct schedule *s = &t->schedule;
	struct batch_backlog alive;
	struct queue_item *item = queue_pop(t->queue, schedule_is_idle(s));
	if (!item && schedule_is_idle(s))
		return false;
	if (s->generator)
		generator_drop(s->generator, is_over, t);
	batch_backlog_init(&alive);
	for (struct queue_item *old; (old = batch_backlog_pop(&s->scores));)
		batch_backlog_append(&alive, old);
	for (struct queue_item *old; (old = batch_backlog_pop(&alive));)
		take_in(t, (struct request_item *)old);
	for (; item; item = queue_pop(t->queue, false))
		take_in(t, (struct request_item *)item);
	count_slots(t);
	return true;
}

static void count_pass(struct teacher *t, double seconds)
{
	const struct batch *b = t->schedule.batch;
	atomic_fetch_add(&t->n_passes, 1);
	atomic_fetch_add(&t->n_mixed, batch_is_mixed(b));
	atomic_fetch_add(&t->n_sequences, b->n_items + b->n_generated);
	atomic_fetch_add(&t->n_positions, b->n_rows);
	atomic_fetch_add(&t->n_shared, b->n_shared);
	histogram_append(&t->pass_seconds, seconds);
}

static int answer_one(struct teacher *t, uint32_t index, const struct act *hidden, struct error *err)
{
	const struct batch *b = t->schedule.batch;
	struct request_item *item = b->items[index].item;
	struct answer_counts counts;
	struct answer_input in = {.teacher = &t->info.fingerprint, .head = t->head, .hidden = hidden, .rows = b->rows + b->items[index].rows,
				  .index = index};
	(void)answer_make(t->answer, &in, item, &counts);    // an error is the item's own
	int device = backend_sync(t->backend, err);
	if (device) {
		item->record = record_unref(item->record);
		return device;
	}
	atomic_fetch_add(&t->n_rows, counts.n_rows);
	atomic_fetch_add(&t->n_not_finite, counts.n_not_finite);
	return 0;
}

static int answer_scores(struct teacher *t, int r, const struct act *hidden, struct error *err)
{
	const struct batch *b = t->schedule.batch;
	for (uint32_t i = 0; i < b->n_items; i++) {
		if (r == 0)
			r = answer_one(t, i, hidden, err);
		if (r)
			poison(t, err);
		give_back(b->items[i].item, r ? ERROR_UNAVAILABLE : ERROR_NONE, "the teacher failed; the server must be restarted");
	}
	return r;
}

static void run_pass(struct teacher *t, bool generates)
{
	struct batch *b = t->schedule.batch;
	struct error err = {0};
	struct layout layout;
	const struct act *hidden = NULL;
	double began = clock_seconds();
	atomic_store(&t->pass_began_ms, clock_ms());
	int r = batch_seal(b, t->schedule.cache, &layout, &err);
	answer_watch(t->answer, t->activations, b);
	if (r == 0) {
		hidden = forward(t->weights, t->activations, &layout);
		r = backend_sync(t->backend, &err);
	}
	batch_unseal(b, t->schedule.cache);
	// Counted before the answers go out: who sees an answer must find it in the metrics.
	count_pass(t, clock_seconds() - began);
	if (r == 0 && generates)
		r = generator_take(t->schedule.generator, hidden, &err);
	r = answer_scores(t, r, hidden, &err);
	if (r)
		poison(t, &err);    // generations are dropped before the next pass
	answer_unwatch(t->answer, t->activations);
	count_slots(t);
	atomic_store(&t->pass_began_ms, 0);
}

static void *engine(void *arg)
{
	struct teacher *t = arg;
	struct error err = {0};
	pthread_setname_np(pthread_self(), "engine");
	if (load(t, &err))
		poison(t, &err);
	else
		set_state(t, TEACHER_READY);
	while (collect(t)) {
		if (!schedule_is_idle(&t->schedule))    // else all of it was over
			run_pass(t, schedule_fill(&t->schedule));
	}
	unload(t);
	return NULL;
}

static struct teacher *teacher_free(struct teacher *t)
{
	tokenizer_close(t->tokenizer);
	model_file_close(t->file);
	queue_close(t->queue);
	free(t->path);
	free(t->device);
	free(t);
	return NULL;
}

int teacher_open(const struct teacher_options *options, struct teacher **ret_teacher, struct error *err)
{
	struct teacher *t = calloc(1, sizeof *t);
	if (!t)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the teacher");
	t->options = *options;
	t->schedule = (struct schedule){.batch_tokens = options->batch_tokens, .generate_batch = options->generate_batch};
	batch_backlog_init(&t->schedule.scores);
	if (!(t->path = strdup(options->path)) || !(t->device = strdup(options->device)) || queue_open(NULL, -1, &t->queue)) {
		teacher_free(t);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the teacher");
	}
	int r = pthread_create(&t->thread, NULL, engine, t);
	if (r) {
		teacher_free(t);
		return error_system(err, r, NULL, "cannot start the engine thread");
	}
	*ret_teacher = t;
	return 0;
}

void teacher_close(struct teacher *t)
{
	if (!t)
		return;
	queue_stop(t->queue);
	pthread_join(t->thread, NULL);
	teacher_free(t);
}

enum teacher_state teacher_state(const struct teacher *t)
{
	return atomic_load(&t->state);
}

void teacher_error(const struct teacher *t, struct error *ret_error)
{
	*ret_error = t->error;
}

const struct teacher_info *teacher_info(const struct teacher *t)
{
	return &t->info;
}

const struct tokenizer *teacher_tokenizer(const struct teacher *t)
{
	return t->tokenizer;
}

int teacher_read_rows(const struct teacher *t, enum teacher_tensor tensor, const uint32_t *ids, uint32_t n, float *ret_values, struct error *err)
{
	static const char *const names[] = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"};
	if (tensor == TEACHER_HEAD && t->info.architecture.tied_head)
		tensor = TEACHER_EMBEDDING;
	int r = model_file_read_rows(t->file, names[tensor], ids, n, ret_values, err);
	return r == -ENOENT ? error_set(err, ERROR_INTERNAL, "tensor", "the model file has no %s", names[tensor]) : r;
}

void teacher_submit(struct teacher *t, struct request_item *chain)
{
	queue_push(t->queue, &chain->link);
}

void teacher_stats(struct teacher *t, struct teacher_stats *ret_stats)
{
	struct queue_cost reserved;
	uint64_t began = atomic_load(&t->pass_began_ms), now = clock_ms();
	*ret_stats = (struct teacher_stats){
		.n_passes = atomic_load(&t->n_passes),
		.n_mixed_passes = atomic_load(&t->n_mixed),
		.n_sequences = atomic_load(&t->n_sequences),
		.n_positions = atomic_load(&t->n_positions),
		.n_rows = atomic_load(&t->n_rows),
		.n_dropped = atomic_load(&t->n_dropped),
		.n_not_finite = atomic_load(&t->n_not_finite),
		.n_shared = atomic_load(&t->n_shared),
		.n_generated = atomic_load(&t->generated.n_tokens),
		.n_reused = atomic_load(&t->generated.n_reused),
		.n_generating = atomic_load(&t->generated.n_active) + atomic_load(&t->generated.n_waiting),
		.n_slots = t->options.cache_tokens,
		.n_slots_used = atomic_load(&t->n_slots_used),
		.n_slots_idle = atomic_load(&t->n_slots_idle),
		.busy_ms = began && now > began ? now - began : 0,
	};
	queue_usage(t->queue, &reserved, &ret_stats->n_waiting);
}

struct histogram *teacher_pass_seconds(struct teacher *t)
{
	return &t->pass_seconds;
}
