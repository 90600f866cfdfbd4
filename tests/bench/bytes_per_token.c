// SPDX-License-Identifier: Apache-2.0
// What keeping a teacher's row costs, and what is lost: usage bytes_per_token TEACHER STUDENT SEED, two files of records of dense f32 rows
// over the same tokens (kdctl score --dense --records), the teacher's sequences being whole runs of the student's. CSV on stdout:
//   bytes_per_position       as an answer travels: the record without its question; of the other layouts, the row
//   disk_bytes_per_position  the whole record, tokens included (of records alone)
//   of_plain                 bytes_per_position / those of plain top-k with as many ids
//   kl                       mean KL(teacher; student) by what was kept: ids and one bucket for the rest; or the cross-entropy by drawn
//                            weights less the true entropy
//   kl_true                  by the dense rows
//   mean_abs_error           of a position's kl against the dense one
//   lost_by_format           mean difference of a position's kl to the one by the same ids with exact numbers (top-k layouts)
// How fast: entries encoded and decoded, millions a second of one core, on these rows.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "tests/bench/bytes_layouts.h"

#define RECORD_HEAD 12
#define SMALLEST_TAIL 1e-7       // of the teacher: below it the bucket says nothing but rounding

static const struct layout layouts[] = {
	{.name = "plain-16", .kind = LAYOUT_PLAIN, .k = 16}, {.name = "plain-50", .kind = LAYOUT_PLAIN, .k = 50},
	{.name = "plain-64", .kind = LAYOUT_PLAIN, .k = 64}, {.name = "plain-128", .kind = LAYOUT_PLAIN, .k = 128},
	{.name = "distillkit-budget", .kind = LAYOUT_DISTILLKIT, .k = 50, .exact = 1, .n_terms = 3, .root = true},
	{.name = "distillkit-recommended", .kind = LAYOUT_DISTILLKIT, .k = 128, .exact = 16, .n_terms = 6, .root = true},
	{.name = "distillkit-released", .kind = LAYOUT_DISTILLKIT, .k = 128, .exact = 32, .n_terms = 3, .exact_f32 = true, .delta = true},
	{.name = "record-16-f32", .kind = LAYOUT_RECORD, .k = 16, .values = QUERY_VALUES_F32},
	{.name = "record-16-f16", .kind = LAYOUT_RECORD, .k = 16, .values = QUERY_VALUES_F16},
	{.name = "record-16-u8", .kind = LAYOUT_RECORD, .k = 16, .values = QUERY_VALUES_U8},
	{.name = "record-50-f32", .kind = LAYOUT_RECORD, .k = 50, .values = QUERY_VALUES_F32},
	{.name = "record-50-f16", .kind = LAYOUT_RECORD, .k = 50, .values = QUERY_VALUES_F16},
	{.name = "record-50-u8", .kind = LAYOUT_RECORD, .k = 50, .values = QUERY_VALUES_U8},
	{.name = "record-64-f32", .kind = LAYOUT_RECORD, .k = 64, .values = QUERY_VALUES_F32},
	{.name = "record-64-f16", .kind = LAYOUT_RECORD, .k = 64, .values = QUERY_VALUES_F16},
	{.name = "record-64-u8", .kind = LAYOUT_RECORD, .k = 64, .values = QUERY_VALUES_U8},
	{.name = "record-128-f32", .kind = LAYOUT_RECORD, .k = 128, .values = QUERY_VALUES_F32},
	{.name = "record-128-f16", .kind = LAYOUT_RECORD, .k = 128, .values = QUERY_VALUES_F16},
	{.name = "record-128-u8", .kind = LAYOUT_RECORD, .k = 128, .values = QUERY_VALUES_U8},
	{.name = "rskd-50-24bit", .kind = LAYOUT_DRAWS_24, .n_draws = 50},
	{.name = "record-draws-50", .kind = LAYOUT_RECORD, .n_draws = 50},
	{.name = "record-16-f16-tail-32", .kind = LAYOUT_RECORD, .k = 16, .n_draws = 32, .values = QUERY_VALUES_F16},
	{.name = "record-16-u8-tail-32", .kind = LAYOUT_RECORD, .k = 16, .n_draws = 32, .values = QUERY_VALUES_U8},
};
#define N_LAYOUTS (sizeof layouts / sizeof *layouts)

struct total { struct cost cost; double kl, error, lost; };

static void die(const char *what)
{
	fprintf(stderr, "bytes_per_token: %s\n", what);
	exit(1);
}

// ---- rows

struct stream { FILE *file; struct record_rows *rows; uint32_t row; };

static bool stream_next_record(struct stream *s)
{
	uint8_t head[RECORD_HEAD], *bytes;
	struct record *record = NULL;
	struct error err = {0};
	s->rows = record_rows_free(s->rows);
	s->row = 0;
	if (fread(head, 1, sizeof head, s->file) != sizeof head)
		return false;
	size_t n = head[8] | (size_t)head[9] << 8 | (size_t)head[10] << 16 | (size_t)head[11] << 24;
	if (n < sizeof head || n > RECORD_MAX_BYTES || !(bytes = malloc(n)))
		die("not a file of records");
	memcpy(bytes, head, sizeof head);
	if (fread(bytes + sizeof head, 1, n - sizeof head, s->file) != n - sizeof head || record_from_bytes(bytes, n, &record, &err) ||
	    record_decode(record, &s->rows, &err))
		die(*err.message ? err.message : "a record is cut short");
	free(bytes);
	record_unref(record);
	if (!s->rows->dense || s->rows->n_rows != s->rows->sequence.n_tokens)
		die("dense rows of every token are expected");
	return true;
}

// ln softmax of n logits; returns the log-sum-exp.
static double log_softmax(const float *logits, uint32_t n, double *ret)
{
	double max = (double)logits[0], sum = 0;
	for (uint32_t i = 1; i < n; i++)
		max = (double)logits[i] > max ? (double)logits[i] : max;
	for (uint32_t i = 0; i < n; i++)
		sum += exp((double)logits[i] - max);
	double lse = max + log(sum);
	for (uint32_t i = 0; i < n; i++)
		ret[i] = (double)logits[i] - lse;
	return lse;
}

// The MAX_K largest, descending, the lower id first among equals.
static void find_top(const float *logits, uint32_t n, uint32_t *top)
{
	uint32_t n_top = 0;
	for (uint32_t id = 0; id < n; id++) {
		if (n_top == MAX_K && !(logits[id] > logits[top[MAX_K - 1]]))
			continue;
		uint32_t at = n_top < MAX_K ? n_top++ : MAX_K - 1;
		for (; at && logits[id] > logits[top[at - 1]]; at--)
			top[at] = top[at - 1];
		top[at] = id;
	}
}

static void batch_init(struct batch *b, const struct record_rows *t, struct stream *student)
{
	size_t n = t->n_rows, V = t->vocab_size;
	*b = (struct batch){.n = t->n_rows, .vocab_size = t->vocab_size, .tokens = t->sequence.tokens, .teacher = t->dense,
		.max_logit = t->max_logit, .log_p = malloc(n * V * sizeof *b->log_p),
		.log_q = malloc(n * V * sizeof *b->log_q), .lse = calloc(n, sizeof *b->lse),
		.entropy = calloc(n, sizeof *b->entropy), .kl = calloc(n, sizeof *b->kl), .top = calloc(n * MAX_K, sizeof *b->top)};
	if (!b->log_p || !b->log_q || !b->lse || !b->entropy || !b->kl || !b->top)
		die("no memory");
	for (size_t row = 0; row < n; row++) {
		double *p = b->log_p + row * V, *q = b->log_q + row * V;
		if ((!student->rows || student->row == student->rows->n_rows) && !stream_next_record(student))
			die("the student has fewer rows than the teacher");
		if (student->rows->sequence.tokens[student->row] != b->tokens[row] || student->rows->vocab_size != V)
			die("teacher and student read different tokens");
		b->lse[row] = log_softmax(b->teacher + row * V, b->vocab_size, p);
		log_softmax(student->rows->dense + student->row++ * V, b->vocab_size, q);
		find_top(b->teacher + row * V, b->vocab_size, b->top + row * MAX_K);
		for (size_t i = 0; i < V; i++) {
			b->entropy[row] -= exp(p[i]) * p[i];
			b->kl[row] += exp(p[i]) * (p[i] - q[i]);
		}
	}
}

static void batch_done(struct batch *b)
{
	free(b->log_p);
	free(b->log_q);
	free(b->lse);
	free(b->entropy);
	free(b->kl);
	free(b->top);
}

// ---- what was kept against the truth

// exact: with the teacher's own probabilities of the ids kept.
static double kept_kl(const struct kept *k, const struct batch *b, uint32_t row, bool exact)
{
	const double *log_p = b->log_p + (size_t)row * b->vocab_size, *log_q = b->log_q + (size_t)row * b->vocab_size;
	double kl = k->weights ? -b->entropy[row] : 0, p_tail = 1, q_tail = 1;
	for (uint32_t i = 0; i < k->n; i++) {
		double p = exact ? exp(log_p[k->ids[i]]) : k->p[i];
		kl += k->weights ? -p * log_q[k->ids[i]] : p > 0 ? p * (log(p) - log_q[k->ids[i]]) : 0;
		p_tail -= p;
		q_tail -= exp(log_q[k->ids[i]]);
	}
	if (!k->weights && p_tail > SMALLEST_TAIL)
		kl += p_tail * (log(p_tail) - log(q_tail > SMALLEST_TAIL ? q_tail : SMALLEST_TAIL));
	return kl;
}

static void measure(const struct batch *b, uint64_t seed, struct total *totals)
{
	struct kept *kept = calloc(b->n, sizeof *kept);
	if (!kept)
		die("no memory");
	for (size_t l = 0; l < N_LAYOUTS; l++) {
		struct total *t = &totals[l];
		if (layout_keep(&layouts[l], b, seed, kept, &t->cost))
			exit(1);
		for (uint32_t row = 0; row < b->n; row++) {
			double kl = kept_kl(&kept[row], b, row, false);
			t->kl += kl;
			t->error += fabs(kl - b->kl[row]);
			if (!kept[row].weights)
				t->lost += fabs(kl - kept_kl(&kept[row], b, row, true));
		}
	}
	free(kept);
}

static void print_row(const struct layout *l, const struct total *t, double n, double kl_true, uint32_t vocab_size, const char *seed)
{
	uint32_t bits = 32 - (uint32_t)__builtin_clz(vocab_size - 1);
	double plain = l->k && !l->n_draws ? 2 * l->k + (l->k * bits + 7) / 8 : 0, bytes = t->cost.bytes / n;
	printf("%s,%.0f,%.2f,", l->name, n, bytes);
	printf(t->cost.disk_bytes > 0 ? "%.2f," : ",", t->cost.disk_bytes / n);
	printf("%.3f,", t->cost.bytes / t->cost.entries);
	printf(plain > 0 ? "%.3f," : ",", bytes / plain);
	printf("%.5f,%.5f,%.5f,", kl_true, t->kl / n, t->error / n);
	printf(plain > 0 ? "%.6f," : ",", t->lost / n);
	if (t->cost.encode_s > 0)
		printf("%.1f,%.1f,", t->cost.entries / t->cost.encode_s / 1e6, t->cost.entries / t->cost.decode_s / 1e6);
	else
		printf(",,");
	printf("%s\n", l->n_draws ? seed : "");
}

int main(int argc, char **argv)
{
	static struct total totals[N_LAYOUTS];
	struct batch b;
	double n = 0, kl = 0;
	uint32_t vocab_size = 0;
	if (argc != 4)
		die("usage: bytes_per_token TEACHER STUDENT SEED");
	struct stream teacher = {.file = fopen(argv[1], "re")}, student = {.file = fopen(argv[2], "re")};
	if (!teacher.file || !student.file)
		die("cannot open the records");
	for (uint64_t seed = strtoull(argv[3], NULL, 10); stream_next_record(&teacher); seed += UINT64_C(1) << 32) {
		batch_init(&b, teacher.rows, &student);
		measure(&b, seed, totals);
		n += b.n;
		vocab_size = b.vocab_size;
		for (uint32_t row = 0; row < b.n; row++)
			kl += b.kl[row];
		batch_done(&b);
	}
	if (!vocab_size)
		die("there are no rows");
	puts("layout,positions,bytes_per_position,disk_bytes_per_position,bytes_per_entry,of_plain,kl_true,kl,mean_abs_error,lost_by_"
	     "format,encode_M_per_s,decode_M_per_s,seed");
	for (size_t l = 0; l < N_LAYOUTS; l++)
		print_row(&layouts[l], &totals[l], n, kl / n, vocab_size, argv[3]);
	record_rows_free(student.rows);
	fclose(teacher.file);
	fclose(student.file);
	return 0;
}
