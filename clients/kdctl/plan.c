// SPDX-License-Identifier: Apache-2.0
// kdctl plan: what scoring a corpus (and training on it) will take, before it is done. No server is needed, except to measure the device.
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "clients/kdctl/kdctl.h"
#include "clients/kdctl/plan.h"
#include "clients/kdctl/store.h"
#include "common/error.h"
#include "daemon/model/config.h"
#include "daemon/model/gguf.h"

#define INT8_BYTES 1.125         // of an integer of int8 as the CPU keeps it: a byte, and a scale for 32 of them
#define PROBE_SECONDS 3.0        // of each of the two probes: long against a pass, short against patience

struct plan_options {
	const char *model, *student;
	bool measure;
	struct plan_device device;
	const char *products;                         // NULL: what the measured server multiplies, f32 where none is
	double memory, element_bytes, block_bytes;    // memory: a cap, 0 = none; bytes of a parameter, and of one of a block's matrices
	double train_flops;                           // 0: as scoring's
	double tokens, length, batch, top_k, value_bytes, cache_tokens, generate, sequences, epochs;
};

static const char help[] =
	"Usage: kdctl plan MODEL [OPTIONS]\n"
	"Predicts memory, tokens per second, bytes and hours from the shape of a model (a GGUF file or a Hugging Face\n"
	"directory) and what a device reaches: --flops and --bandwidth, or --measure, which asks the running server, whose\n"
	"teacher must be MODEL, for some seconds of work.\n\n"
	"  --measure                  measure the server's device (--server)\n"
	"  --flops F                  FLOP/s its products reach, as 2e11\n"
	"  --bandwidth B              bytes/s it reads weights at, as 2e10\n"
	"  --tokens N                 of the corpus; default 1e6\n"
	"  --length N                 of a sequence; default 512\n"
	"  --batch N                  positions of a pass; default 2048\n"
	"  --top-k K                  ids of a row; default 64\n"
	"  --values f32|f16|u8        numbers of a record; default f16\n"
	"  --cache-tokens N           positions of the cache for generation; default 0\n"
	"  --generate N               tokens to be generated; default 0\n"
	"  --sequences N              generated side by side; default 8\n"
	"  --memory BYTES             of a CPU teacher: as the server's setting; what has no room is unpacked from what\n"
	"                             the file has, or read from disk\n"
	"  --disk B                   bytes/s the disk gives; default 2e9\n"
	"  --products f32|bf16|int8|fp8  what the teacher multiplies: how weights lie in memory; default f32, with\n"
	"                             --measure the server's\n"
	"  --student MODEL            also train this one on the corpus, on the same device\n"
	"  --train-flops F            FLOP/s a training step reaches; default: as scoring\n"
	"  --epochs N                 times it sees the corpus; default 1\n";

// ---- options

// FP8: a block's matrices take a byte, all else is bf16.
static bool set_products(const char *name, struct plan_options *o)
{
	static const struct { const char *name; double element_bytes, block_bytes; } products[] = {
		{"f32", 4, 4}, {"bf16", 2, 2}, {"int8", INT8_BYTES, INT8_BYTES}, {"fp8", 2, 1}};
	for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
		if (!strcmp(name, products[i].name)) {
			o->products = products[i].name;
			o->element_bytes = products[i].element_bytes;
			o->block_bytes = products[i].block_bytes;
			return true;
		}
	}
	return false;
}

static int parse_number(struct kdctl *k, int c, struct plan_options *o)
{
	static const struct { int c; size_t at; double min; } numbers[] = {
		{'f', offsetof(struct plan_options, device.flops), 1}, {'b', offsetof(struct plan_options, device.bandwidth), 1},
		{'t', offsetof(struct plan_options, tokens), 1}, {'l', offsetof(struct plan_options, length), 1},
		{'B', offsetof(struct plan_options, batch), 1}, {'k', offsetof(struct plan_options, top_k), 0},
		{'c', offsetof(struct plan_options, cache_tokens), 0}, {'g', offsetof(struct plan_options, generate), 0},
		{'M', offsetof(struct plan_options, memory), 1}, {'d', offsetof(struct plan_options, device.disk), 1},
		{'n', offsetof(struct plan_options, sequences), 1}, {'e', offsetof(struct plan_options, epochs), 0},
		{'F', offsetof(struct plan_options, train_flops), 1},
	};
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		if (numbers[i].c == c && kdctl_number(optarg, numbers[i].min, 1e30, (double *)((char *)o + numbers[i].at)))
			return 0;
	return kdctl_usage(k, "%s: a number is expected (kdctl plan --help)", optarg);
}

static int parse(struct kdctl *k, int argc, char **argv, struct plan_options *o)
{
	static const struct option options[] = {{"measure", no_argument, NULL, 'm'}, {"flops", required_argument, NULL, 'f'},
		{"bandwidth", required_argument, NULL, 'b'}, {"tokens", required_argument, NULL, 't'},
		{"length", required_argument, NULL, 'l'}, {"batch", required_argument, NULL, 'B'}, {"top-k", required_argument, NULL, 'k'},
		{"values", required_argument, NULL, 'v'}, {"cache-tokens", required_argument, NULL, 'c'},
		{"generate", required_argument, NULL, 'g'}, {"sequences", required_argument, NULL, 'n'},
		{"student", required_argument, NULL, 's'}, {"epochs", required_argument, NULL, 'e'},
		{"memory", required_argument, NULL, 'M'}, {"disk", required_argument, NULL, 'd'},
		{"products", required_argument, NULL, 'p'}, {"train-flops", required_argument, NULL, 'F'},
		{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	int status = 0;
	optind = 0;
	for (int c; !status && (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		switch (c) {
		case 'm': o->measure = true; break;
		case 's': o->student = optarg; break;
		case 'j': k->json = true; break;
		case 'h': fputs(help, stdout); return -1;
		case 'v':
			o->value_bytes = !strcmp(optarg, "f32") ? 4 : !strcmp(optarg, "f16") ? 2 : !strcmp(optarg, "u8") ? 1 : 0;
			if (o->value_bytes == 0)
				return kdctl_usage(k, "--values %s: f32, f16 or u8 is expected", optarg);
			break;
		case 'p':
			if (!set_products(optarg, o))
				return kdctl_usage(k, "--products %s: f32, bf16, int8 or fp8 is expected", optarg);
			break;
		case '?': case ':': return kdctl_bad_option(k, argc, argv);
		default: status = parse_number(k, c, o);
		}
	}
	if (status)
		return status;
	if (argc - optind != 1)
		return kdctl_usage(k, "a MODEL is expected (kdctl plan --help)");
	if (o->memory > 0 && o->block_bytes != o->element_bytes)
		return kdctl_usage(k, "--products fp8 is a GPU's, --memory a teacher's on the CPU");
	o->model = argv[optind];
	if (!o->measure && !(o->device.flops > 0 && o->device.bandwidth > 0))
		return kdctl_usage(k, "--flops and --bandwidth, or --measure, are expected (kdctl plan --help)");
	return 0;
}

// ---- the model

struct model { struct architecture architecture; double file_bytes; };

static int read_directory(struct kdctl *k, const char *path, struct model *m)
{
	char *name = NULL, *json = NULL;
	size_t n = 0;
	struct error err = {0};
	struct stat st;
	DIR *d = opendir(path);
	int status = d && asprintf(&name, "%s/config.json", path) > 0 ? 0 : kdctl_fail(k, "%s: %s", path, strerror(errno));
	if (!status && !(json = read_text_file(k, name, &n)))
		status = 1;
	if (!status && architecture_from_json(json, n, &m->architecture, &err))
		status = kdctl_fail(k, "%s: %s", path, err.message);
	for (struct dirent *e; !status && (e = readdir(d));) {
		size_t length = strlen(e->d_name);
		if (length > 12 && !strcmp(e->d_name + length - 12, ".safetensors") && fstatat(dirfd(d), e->d_name, &st, 0) == 0)
			m->file_bytes += (double)st.st_size;
	}
	if (d)
		closedir(d);
	free(name);
	free(json);
	return status;
}

static int read_model(struct kdctl *k, const char *path, struct model *m)
{
	struct stat st;
	struct gguf *file;
	struct error err = {0};
	if (stat(path, &st))
		return kdctl_fail(k, "%s: %s", path, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return read_directory(k, path, m);
	int r = gguf_open(path, &file, &err);
	if (r == 0) {
		m->file_bytes = (double)gguf_file_bytes(file);
		r = architecture_from_gguf(file, &m->architecture, &err);
		gguf_close(file);
	}
	return r ? kdctl_fail(k, "%s: %s", path, err.message) : 0;
}

// ---- the device

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Rows per second: requests of as many sequences as make a pass, all positions, until the time is up; the first is not counted.
static int probe_scoring(struct kdctl *k, const struct plan_options *o, uint32_t length, double *ret_rate)
{
	struct kd_query query = KD_QUERY_INIT;
	struct kd_request request = KD_REQUEST_INIT;
	uint32_t n = (uint32_t)(o->batch / length) ? (uint32_t)(o->batch / length) : 1, V = kd_server(k->client)->vocab_size;
	struct kd_sequence *sequences = calloc(n, sizeof *sequences);
	struct kd_answer **answers = calloc(n, sizeof *answers);
	uint32_t *tokens = calloc((size_t)n * length, sizeof *tokens);
	struct kd_error err;
	double began = 0, rows = 0;
	int status = sequences && answers && tokens ? 0 : kdctl_fail(k, "no memory");
	query.own = true;
	request = (struct kd_request){.size = sizeof request, .query = &query, .sequences = sequences, .n_sequences = n,
		.flags = KD_NO_STORE};
	for (uint64_t round = 0; !status && (round < 2 || now() - began < PROBE_SECONDS); round++) {
		if (round == 1)
			began = now();
		for (uint32_t i = 0; i < n * length; i++)
			tokens[i] = (uint32_t)(((round * n * length + i) * UINT64_C(2654435761) >> 7) % V);
		for (uint32_t i = 0; i < n; i++)
			sequences[i] = (struct kd_sequence){.tokens = tokens + (size_t)i * length, .n_tokens = length};
		if (kd_score(k->client, &request, answers, &err))
			status = kdctl_fail_with(k, err.field, err.message);
		for (uint32_t i = 0; !status && i < n; i++)
			kd_answer_free(answers[i]);
		rows += round ? (double)n * length : 0;
	}
	*ret_rate = rows / (now() - began);
	free(sequences);
	free(answers);
	free(tokens);
	return status;
}

struct pieces { double began, ended, tokens; };

static int take_piece(void *arg, const struct kd_piece *piece)
{
	struct pieces *p = arg;
	if (p->began == 0)      // the prompt's own pass is before the first token
		p->began = now();
	else
		p->tokens += piece->n;
	p->ended = now();
	return 0;
}

static int probe_generation(struct kdctl *k, const struct plan_options *o, double *ret_rate)
{
	static const uint32_t first[] = {1, 2, 3, 4};
	struct kd_generation g = KD_GENERATION_INIT;
	struct kd_prompt prompt = {first, 4};
	struct kd_error err;
	struct pieces p = {0};
	uint64_t seed = 1;
	g.prompts = &prompt;
	g.n_prompts = 1;
	g.n = (uint32_t)o->sequences;
	g.max_tokens = 48;
	g.ignore_eos = true;
	g.seed = &seed;
	if (kd_generate(k->client, &g, take_piece, &p, &err))
		return kdctl_fail_with(k, err.field, err.message);
	*ret_rate = p.ended > p.began ? p.tokens / (p.ended - p.began) : 0;
	return 0;
}

// What the server multiplies, by the name it has there: "bf16", "int8", "fp8", or one of several for floats.
static int learn_products(struct kdctl *k, struct plan_options *o)
{
	json_t *model = kdctl_call(k, "GET", "/v1/model", NULL);
	const char *numeric = json_string_value(json_object_get(model, "numeric"));
	if (!numeric) {
		json_decref(model);
		return model ? kdctl_fail(k, "the server does not say what it multiplies") : 1;
	}
	const char *asked = o->products;
	if (!set_products(numeric, o))
		set_products("f32", o);
	json_decref(model);
	return asked && strcmp(asked, o->products) != 0 ? kdctl_fail(k, "--products %s, but the measured server multiplies %s", asked,
								     o->products) : 0;
}

// What the products reach follows from a scoring pass, what memory does from a step of generation.
static int measure(struct kdctl *k, struct plan_options *o, const struct model *m)
{
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	double rate = 0, steps = 0;
	int status = kdctl_connect(k);
	if (status || (status = learn_products(k, o)))
		return status;
	uint32_t most = kd_server(k->client)->max_tokens, length = o->length < most ? (uint32_t)o->length : most;
	// A file's embedding may be padded; a server never counts that.
	if (kd_server(k->client)->vocab_size > m->architecture.vocab_size || kd_server(k->client)->n_layers != m->architecture.n_layers)
		return kdctl_fail(k, "the server's teacher is not %s: measure with the same model", o->model);
	if ((status = probe_scoring(k, o, length, &rate)) || (status = probe_generation(k, o, &steps)))
		return status;
	struct plan_pass pass = plan_generation(o->sequences, 28, o->element_bytes);      // in the middle of the probe's 4 + 48
	o->device.bandwidth = plan_bytes(ops, plan_operators(&m->architecture, &pass, ops)) / o->sequences * steps;
	pass = plan_scoring(o->batch, length, o->element_bytes);
	o->device.flops = plan_fit_flops(&o->device, ops, plan_operators(&m->architecture, &pass, ops), o->batch / rate);
	return 0;
}

// ---- the plan

static void put(json_t *j, const char *key, double v)
{
	json_object_set_new(j, key, json_real(v));
}

// Operators of a pass, with what it reads from disk.
static size_t operators(const struct plan_options *o, const struct architecture *a, const struct plan_stream *s,
			const struct plan_pass *pass, struct plan_operator ret[PLAN_MAX_OPERATORS])
{
	size_t n = plan_operators(a, pass, ret);
	if (s->file_bytes > 0 || s->stored_bytes > 0)
		plan_read(a, s, o->element_bytes, pass, ret, n);
	return n;
}

// Returns the bytes of memory.
static double plan_memory(json_t *j, const struct plan_options *o, const struct architecture *a, double resident,
			  const struct plan_stream *s, const struct plan_operator *ops, size_t n)
{
	double read = 0, all = resident + plan_cache_bytes(a, o->cache_tokens) + plan_work_bytes(a, o->batch);
	for (size_t i = 0; i < n; i++)
		read += ops[i].read;
	if (o->memory <= 0)
		return all;
	put(j, "memory_needed_bytes", s->needed_bytes);
	put(j, "stored_bytes", s->stored_bytes);
	put(j, "streamed_bytes", s->file_bytes);
	put(j, "pass_read_bytes", read);
	put(j, "hidden_batch_tokens", s->hidden_batch);
	return o->memory;
}

static void plan_teacher(json_t *j, const struct plan_options *o, const struct model *m)
{
	const struct architecture *a = &m->architecture;
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	struct plan_pass pass = plan_scoring(o->batch, o->length, o->element_bytes);
	struct plan_cap cap = {o->memory, o->element_bytes, o->element_bytes < 2 ? 0 : m->file_bytes, o->batch, o->cache_tokens};
	struct plan_stream s = o->memory > 0 ? plan_streaming(a, &cap, &o->device) : (struct plan_stream){0};
	size_t n = operators(o, a, &s, &pass, ops);
	double rate = o->batch / plan_seconds(&o->device, ops, n), row = plan_row_bytes(a->vocab_size, o->top_k, o->value_bytes);
	double blocks = plan_block_elements(a);
	double resident = o->element_bytes * ((double)architecture_n_parameters(a) - blocks) + o->block_bytes * blocks;
	json_t *shares = json_object();
	for (size_t i = 0; i < n; i++)
		put(shares, ops[i].name, plan_seconds(&o->device, &ops[i], 1) * rate / o->batch);
	put(j, "parameters", (double)architecture_n_parameters(a));
	put(j, "active_parameters", plan_active_parameters(a));
	json_object_set_new(j, "products", json_string(o->products));
	put(j, "flops", o->device.flops);
	put(j, "bandwidth", o->device.bandwidth);
	put(j, "weights_bytes", m->file_bytes);
	put(j, "resident_bytes", resident);
	put(j, "cache_bytes", plan_cache_bytes(a, o->cache_tokens));
	put(j, "work_bytes", plan_work_bytes(a, o->batch));
	put(j, "memory_bytes", plan_memory(j, o, a, resident, &s, ops, n));
	json_object_set_new(j, "shares", shares);
	put(j, "score_tokens_per_s", rate);
	put(j, "score_hours", o->tokens / rate / 3600);
	put(j, "row_bytes", row);
	put(j, "store_bytes", row * o->tokens);
	put(j, "wire_bytes_per_s", row * rate);
	if (o->generate > 0) {
		pass = plan_generation(o->sequences, o->length, o->element_bytes);
		n = operators(o, a, &s, &pass, ops);
		rate = o->sequences / plan_seconds(&o->device, ops, n);
		put(j, "generate_tokens_per_s", rate);
		put(j, "generate_hours", o->generate / rate / 3600);
	}
}

// Forward once, backward twice.
static int plan_student(struct kdctl *k, json_t *j, const struct plan_options *o)
{
	struct model m = {0};
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	int status = o->student ? read_model(k, o->student, &m) : 0;
	if (status || !o->student)
		return status;
	struct plan_pass pass = plan_scoring(o->batch, o->length, 4);
	struct plan_device device = o->device;
	device.flops = o->train_flops > 0 ? o->train_flops : device.flops;
	size_t n = plan_operators(&m.architecture, &pass, ops);
	double rate = o->batch / (3 * plan_seconds(&device, ops, n));
	put(j, "student_parameters", (double)architecture_n_parameters(&m.architecture));
	put(j, "train_flop_per_token", 3 * plan_flop(ops, n) / o->batch);
	put(j, "train_memory_bytes", plan_training_bytes(&m.architecture, o->batch));
	put(j, "train_tokens_per_s", rate);
	put(j, "train_hours", o->tokens * o->epochs / rate / 3600);
	return 0;
}

static void print_plan(const struct kdctl *k, const json_t *j)
{
	const char *key;
	const json_t *v;
	char text[24];
	if (k->json) {
		kdctl_print_json(j);
		return;
	}
	json_object_foreach((json_t *)(uintptr_t)j, key, v) {
		size_t n = strlen(key);
		if (json_is_object(v))
			continue;
		if (json_is_string(v)) {
			printf("%-24s %s\n", key, json_string_value(v));
			continue;
		}
		if (n > 6 && !strcmp(key + n - 6, "_bytes")) {
			store_bytes_text((uint64_t)json_real_value(v), text);
			printf("%-24s %s\n", key, text);
		} else {
			printf("%-24s %.4g\n", key, json_real_value(v));
		}
	}
}

int command_plan(struct kdctl *k, int argc, char **argv)
{
	struct plan_options o = {.tokens = 1e6, .length = 512, .batch = 2048, .top_k = 64, .value_bytes = 2, .sequences = 8, .epochs = 1,
				 .device.disk = 2e9};
	struct model m = {0};
	int status = parse(k, argc, argv, &o);
	if (!status)
		status = read_model(k, o.model, &m);
	if (status)
		return status < 0 ? 0 : status;
	if (o.measure && (status = measure(k, &o, &m)))
		return status;
	if (!o.products)
		set_products("f32", &o);
	json_t *j = json_object();
	plan_teacher(j, &o, &m);
	status = plan_student(k, j, &o);
	if (!status)
		print_plan(k, j);
	json_decref(j);
	return status;
}
