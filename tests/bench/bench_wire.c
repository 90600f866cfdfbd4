// SPDX-License-Identifier: Apache-2.0
// What a scored row costs on the wire and in time, in kdserved's formats and in the shapes other servers answer in. CSV:
// format,top_k,rows,bytes_per_row,bytes_per_entry,encode_us_per_row,decode_us_per_row
// Times are of one thread's processor time, the least of several runs. "Decode" ends in arrays of ids and numbers for all formats: JSON is
// parsed by jansson, base64 decoded from the parsed text. Rows: top-k of V = 151936 with the own token and lse at T = 1 (for the others
// log-probs).
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/buffer.h"
#include "common/crc32c.h"
#include "common/error.h"
#include "common/frame.h"
#include "common/record.h"
#include "common/record_json.h"
#include "common/record_short.h"

#define VOCABULARY 151936
#define REPEATS 7

struct sample {
	struct record_rows *rows;
	struct record *record;             // of the rows
	uint8_t *brief;                    // its short form
	struct record_question question;
	struct buffer text;                // of the other formats
	uint32_t *ids;                     // (n_rows, top_k + 1) what a decoder fills
	float *numbers;
	size_t n_bytes;
};

typedef void step_fn(struct sample *s);

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint32_t next(void)
{
	static uint64_t state = 1;
	state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(state >> 33);
}

static void must(bool good, const char *what)
{
	if (!good) {
		fprintf(stderr, "bench_wire: %s\n", what);
		exit(1);
	}
}

// Distinct ids spread evenly (the worst case for their size); logits of a model: close at the top, then ever further down.
static void fill(struct record_rows *rows, uint32_t row)
{
	uint32_t k = rows->query.top_k, stride = VOCABULARY / k;
	float logit = 15 + (float)(next() % 1000) / 100;
	for (uint32_t i = 0; i < k; i++) {
		rows->ids[(size_t)row * k + i] = (i * 37 % k) * stride + next() % stride;
		rows->logits[(size_t)row * k + i] = logit;
		logit -= (float)(1 + next() % 4096) / 8192 / (float)(1 + i / 8);
	}
	rows->max_logit[row] = rows->logits[(size_t)row * k];
	rows->lse[row] = rows->max_logit[row] + 0.7f;
	if (rows->own_logit)
		rows->own_logit[row] = row + 1 < rows->n_rows ? logit : NAN;
}

static struct sample sample_new(uint32_t n_rows, uint32_t k, enum query_values values, bool own)
{
	struct sample s = {.rows = NULL};
	static struct content_id teacher, key;
	struct sequence tokens = {calloc(n_rows, 4), n_rows};
	struct query q = {.top_k = k, .last = -1, .values = values, .own = own};
	struct query_limits limits = {.max_tokens = n_rows, .max_top_k = VOCABULARY, .vocab_size = VOCABULARY};
	must(tokens.tokens != NULL, "no memory");
	for (uint32_t i = 0; i < n_rows; i++)
		tokens.tokens[i] = next() % VOCABULARY;
	must(query_check(&q, &tokens, &limits, "", NULL) == 0 &&
		record_rows_new(&teacher, VOCABULARY, &tokens, &q, &s.rows, NULL) == 0, "rows");
	for (uint32_t row = 0; row < n_rows; row++)
		fill(s.rows, row);
	sequence_done(&tokens);
	s.ids = calloc((size_t)n_rows * (k + 1), 4);
	s.numbers = calloc((size_t)n_rows * (k + 1), 4);
	must(s.ids && s.numbers && record_encode(s.rows, &s.record, NULL) == 0, "record");
	s.brief = malloc(record_short_bytes(s.record));
	must(s.brief != NULL, "no memory");
	record_shorten(s.record, s.brief);
	key = *record_key(s.record);
	s.question = (struct record_question){&s.rows->teacher, &key, &s.rows->sequence, &s.rows->query, VOCABULARY};
	return s;
}

static void sample_done(struct sample *s)
{
	record_rows_free(s->rows);
	record_unref(s->record);
	buffer_done(&s->text);
	free(s->brief);
	free(s->ids);
	free(s->numbers);
}

// ---- kdserved's binary protocol: the record in its frame, with both checksums

static void frame_check(struct sample *s, const void *bytes, size_t n)
{
	s->n_bytes = FRAME_HEADER_BYTES + FRAME_ANSWER_HEADER_BYTES + n;
	s->numbers[0] = (float)crc32c(0, bytes, n);     // the body's checksum, which both sides make
}

static void binary_encode(struct sample *s)
{
	record_unref(s->record);
	must(record_encode(s->rows, &s->record, NULL) == 0, "encode");
	size_t n;
	const void *bytes = record_bytes(s->record, &n);
	frame_check(s, bytes, n);
}

static void binary_decode(struct sample *s)
{
	struct record *record = NULL;
	struct record_rows *rows = NULL;
	size_t n;
	const void *bytes = record_bytes(s->record, &n);
	frame_check(s, bytes, n);
	must(record_from_bytes(bytes, n, &record, NULL) == 0 && record_decode(record, &rows, NULL) == 0, "decode");
	record_unref(record);
	record_rows_free(rows);
}

static void short_encode(struct sample *s)
{
	record_unref(s->record);
	must(record_encode(s->rows, &s->record, NULL) == 0, "encode");
	record_shorten(s->record, s->brief);
	frame_check(s, s->brief, record_short_bytes(s->record));
}

static void short_decode(struct sample *s)
{
	struct record *record = NULL;
	struct record_rows *rows = NULL;
	size_t n = record_short_bytes(s->record);
	frame_check(s, s->brief, n);
	must(record_restore(s->brief, n, &s->question, &record, NULL) == 0 && record_decode(record, &rows, NULL) == 0, "restore");
	record_unref(record);
	record_rows_free(rows);
}

// The two steps of the codec alone, as the engine and a trainer take them.
static void codec_encode(struct sample *s)
{
	record_unref(s->record);
	must(record_encode(s->rows, &s->record, NULL) == 0, "encode");
	(void)record_bytes(s->record, &s->n_bytes);
}

static void codec_decode(struct sample *s)
{
	struct record_rows *rows = NULL;
	must(record_decode(s->record, &rows, NULL) == 0, "decode");
	record_rows_free(rows);
}

// ---- texts

static void text_begin(struct sample *s)
{
	s->text.n = 0;
}

static void text_end(struct sample *s)
{
	must(!s->text.failed, "no memory for text");
	s->n_bytes = s->text.n;
}

static json_t *text_parse(struct sample *s)
{
	json_t *j = json_loadb(s->text.data, s->text.n, JSON_DECODE_ANY, NULL);
	must(j != NULL, "text");
	return j;
}

static float log_prob(const struct record_rows *r, size_t row, size_t i)
{
	return r->logits[row * r->query.top_k + i] - r->lse[row];
}

static void kdserved_json_encode(struct sample *s)
{
	text_begin(s);
	buffer_text(&s->text, "[");
	for (uint32_t row = 0; row < s->rows->n_rows; row++) {
		buffer_text(&s->text, row ? "," : "");
		record_json_row(&s->text, s->rows, row);
	}
	buffer_text(&s->text, "]");
	text_end(s);
}

static void read_numbers(const json_t *list, size_t n, uint32_t *ids, float *numbers)
{
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_array_get(list, i);
		if (ids)
			ids[i] = (uint32_t)json_integer_value(v);
		else
			numbers[i] = (float)json_number_value(v);
	}
}

static void kdserved_json_decode(struct sample *s)
{
	json_t *j = text_parse(s);
	size_t k = s->rows->query.top_k;
	for (size_t row = 0; row < json_array_size(j); row++) {
		json_t *r = json_array_get(j, row);
		read_numbers(json_object_get(r, "ids"), k, s->ids + row * k, NULL);
		read_numbers(json_object_get(r, "logits"), k, NULL, s->numbers + row * k);
	}
	json_decref(j);
}

static void base64_encode(struct sample *s)
{
	size_t n = (size_t)s->rows->n_rows * s->rows->query.top_k * 4;
	text_begin(s);
	buffer_text(&s->text, "{\"lse\":\"");
	buffer_base64(&s->text, s->rows->lse, (size_t)s->rows->n_rows * 4);
	buffer_text(&s->text, "\",\"ids\":\"");
	buffer_base64(&s->text, s->rows->ids, n);
	buffer_text(&s->text, "\",\"logits\":\"");
	buffer_base64(&s->text, s->rows->logits, n);
	buffer_text(&s->text, "\"}");
	text_end(s);
}

static size_t base64_read(const char *text, size_t n, uint8_t *to)
{
	static int8_t value[256];
	size_t out = 0;
	for (int i = 0; i < 64 && !value['/']; i++)
		value[(uint8_t)"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[i]] = (int8_t)i;
	for (size_t i = 0; i + 4 <= n; i += 4) {
		uint32_t v = 0;
		for (int j = 0; j < 4; j++)
			v = v << 6 | (uint32_t)value[(uint8_t)text[i + (size_t)j]];
		for (int j = 0; j < 3; j++)
			if (text[i + 1 + (size_t)j] != '=')
				to[out++] = (uint8_t)(v >> (16 - 8 * j));
	}
	return out;
}

static void base64_decode(struct sample *s)
{
	json_t *j = text_parse(s), *ids = json_object_get(j, "ids"), *logits = json_object_get(j, "logits");
	base64_read(json_string_value(ids), json_string_length(ids), (uint8_t *)s->ids);
	base64_read(json_string_value(logits), json_string_length(logits), (uint8_t *)s->numbers);
	json_decref(j);
}

// vLLM's prompt_logprobs: [null, {"ID":{"logprob":..,"rank":..,"decoded_token":".."}, ..}, ..]
static void vllm_encode(struct sample *s)
{
	size_t k = s->rows->query.top_k;
	text_begin(s);
	buffer_text(&s->text, "[null");
	for (size_t row = 0; row < s->rows->n_rows; row++) {
		for (size_t i = 0; i < k; i++) {
			buffer_printf(&s->text, "%s\"%" PRIu32 "\":{\"logprob\":", i ? "," : ",{", s->rows->ids[row * k + i]);
			buffer_printf(&s->text, "%.17g", (double)log_prob(s->rows, row, i));    // Python prints a float as its double
			buffer_printf(&s->text, ",\"rank\":%zu,\"decoded_token\":\" token\"}", i + 1);
		}
		buffer_text(&s->text, "}");
	}
	buffer_text(&s->text, "]");
	text_end(s);
}

static void vllm_decode(struct sample *s)
{
	json_t *j = text_parse(s), *entry;
	size_t k = s->rows->query.top_k;
	for (size_t row = 1; row < json_array_size(j); row++) {
		size_t i = (row - 1) * k;
		const char *id;
		json_object_foreach(json_array_get(j, row), id, entry) {
			s->ids[i] = (uint32_t)strtoul(id, NULL, 10);
			s->numbers[i++] = (float)json_number_value(json_object_get(entry, "logprob"));
		}
	}
	json_decref(j);
}

// SGLang's input_top_logprobs: [[[logprob, id, null], ..], ..]
static void sglang_encode(struct sample *s)
{
	size_t k = s->rows->query.top_k;
	text_begin(s);
	buffer_text(&s->text, "[");
	for (size_t row = 0; row < s->rows->n_rows; row++) {
		buffer_text(&s->text, row ? ",[" : "[");
		for (size_t i = 0; i < k; i++)
			buffer_printf(&s->text, "%s[%.17g,%" PRIu32 ",null]", i ? "," : "", (double)log_prob(s->rows, row, i),
				      s->rows->ids[row * k + i]);
		buffer_text(&s->text, "]");
	}
	buffer_text(&s->text, "]");
	text_end(s);
}

static void sglang_decode(struct sample *s)
{
	json_t *j = text_parse(s);
	size_t k = s->rows->query.top_k;
	for (size_t row = 0; row < json_array_size(j); row++)
		for (size_t i = 0; i < k; i++) {
			const json_t *entry = json_array_get(json_array_get(j, row), i);
			s->numbers[row * k + i] = (float)json_number_value(json_array_get(entry, 0));
			s->ids[row * k + i] = (uint32_t)json_integer_value(json_array_get(entry, 1));
		}
	json_decref(j);
}

// Its flat form: {"logprobs":[..],"ids":[..]}
static void sglang_flat_encode(struct sample *s)
{
	size_t k = s->rows->query.top_k, n = s->rows->n_rows * k;
	text_begin(s);
	buffer_text(&s->text, "{\"logprobs\":");
	for (size_t i = 0; i < n; i++)
		buffer_printf(&s->text, "%c%.17g", i ? ',' : '[', (double)log_prob(s->rows, i / k, i % k));
	buffer_text(&s->text, "],\"ids\":");
	for (size_t i = 0; i < n; i++)
		buffer_printf(&s->text, "%c%" PRIu32, i ? ',' : '[', s->rows->ids[i]);
	buffer_text(&s->text, "]}");
	text_end(s);
}

static void sglang_flat_decode(struct sample *s)
{
	json_t *j = text_parse(s);
	size_t n = (size_t)s->rows->n_rows * s->rows->query.top_k;
	read_numbers(json_object_get(j, "logprobs"), n, NULL, s->numbers);
	read_numbers(json_object_get(j, "ids"), n, s->ids, NULL);
	json_decref(j);
}

static double least(struct sample *s, step_fn *step)
{
	double best = INFINITY;
	for (int i = 0; i < REPEATS; i++) {
		double begin = seconds();
		step(s);
		double took = seconds() - begin;
		best = took < best ? took : best;
	}
	return best;
}

static void measure(const char *name, struct sample *s, step_fn *encode, step_fn *decode)
{
	double n = s->rows->n_rows, entries = n * s->rows->query.top_k;
	double made = least(s, encode), read = least(s, decode);
	printf("%s,%" PRIu32 ",%.0f,%.1f,%.3f,%.3f,%.3f\n", name, s->rows->query.top_k, n, (double)s->n_bytes / n,
	       (double)s->n_bytes / entries, made / n * 1e6, read / n * 1e6);
	fflush(stdout);
}

static void measure_formats(uint32_t n_rows, uint32_t k)
{
	static const struct { const char *name; enum query_values values; } formats[] = {
		{"kdserved f32", QUERY_VALUES_F32}, {"kdserved f16", QUERY_VALUES_F16}, {"kdserved u8", QUERY_VALUES_U8}};
	for (size_t i = 0; i < 3; i++) {
		struct sample s = sample_new(n_rows, k, formats[i].values, true);
		char name[64];
		measure(formats[i].name, &s, binary_encode, binary_decode);
		snprintf(name, sizeof name, "%s short", formats[i].name);
		measure(name, &s, short_encode, short_decode);
		sample_done(&s);
	}
	struct sample s = sample_new(n_rows, k, QUERY_VALUES_F32, true);
	measure("kdserved JSON", &s, kdserved_json_encode, kdserved_json_decode);
	measure("kdserved base64", &s, base64_encode, base64_decode);
	measure("vLLM prompt_logprobs", &s, vllm_encode, vllm_decode);
	measure("SGLang nested", &s, sglang_encode, sglang_decode);
	measure("SGLang flat JSON", &s, sglang_flat_encode, sglang_flat_decode);
	measure("SGLang flat base64", &s, base64_encode, base64_decode);
	sample_done(&s);
}

// 32768 rows of 2 entries: what the peers publish their milliseconds for.
static void measure_narrow(void)
{
	struct sample s = sample_new(32768, 2, QUERY_VALUES_F32, false);
	double made = least(&s, codec_encode), read = least(&s, codec_decode);
	printf("\n# 32768 rows x 2 entries: encode %.3f ms, decode %.3f ms, together %.3f ms, %zu bytes\n", made * 1e3, read * 1e3,
	       (made + read) * 1e3, s.n_bytes);
	printf("#   with frame and record checks: ");
	made = least(&s, short_encode), read = least(&s, short_decode);
	printf("encode %.3f ms, decode %.3f ms, together %.3f ms, %zu bytes (short)\n", made * 1e3, read * 1e3,
		(made + read) * 1e3, s.n_bytes);
	sample_done(&s);
}

int main(int argc, char **argv)
{
	uint32_t n_rows = argc > 1 ? (uint32_t)atoi(argv[1]) : 512;
	printf("format,top_k,rows,bytes_per_row,bytes_per_entry,encode_us_per_row,decode_us_per_row\n");
	measure_formats(n_rows, 64);
	measure_narrow();
	return 0;
}
