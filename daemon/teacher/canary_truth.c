// SPDX-License-Identifier: Apache-2.0
// Answers held against each other, and the file of the first.
#include "daemon/teacher/canary.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "common/output.h"
#include "common/record.h"

#define KEPT_MAX_BYTES (1u << 20)          // the question is small, so is every right file

// f32 on another processor: 1e-4 of logits near 20 seen against the reference; a hundred times that still is far below what a wrong product
// does. bf16 rounds the inputs of each product to 8 bits, and so does int8:
// a last digit that differs before it may be a whole step behind it. A step of fp8, behind bf16's digits on a GPU, is up to an eighth.
double canary_tolerance(const char *numeric)
{
	if (strcmp(numeric, "fp8") == 0)
		return 1;
	return strcmp(numeric, "bf16") == 0 || strcmp(numeric, "int8") == 0 ? 0.5 : 0.01;
}

struct comparison { double allowed, worst; const char *what; uint32_t row; };

static void compare(struct comparison *c, const char *what, uint32_t row, double known, double now)
{
	double off = fabs(known - now);
	if (isnan(known) && isnan(now))
		return;
	if (isnan(off))
		off = INFINITY;
	if (off > c->worst || !c->what)
		*c = (struct comparison){c->allowed, off, what, row};
}

// An id may be missing only where its logit lies at the edge of the other list.
static void compare_top(struct comparison *c, uint32_t row, const struct record_rows *known, const struct record_rows *now)
{
	uint32_t k = known->query.top_k;
	const uint32_t *a = known->ids + (size_t)row * k, *b = now->ids + (size_t)row * k;
	const float *x = known->logits + (size_t)row * k, *y = now->logits + (size_t)row * k;
	for (uint32_t i = 0; i < k; i++) {
		uint32_t j = 0;
		while (j < k && b[j] != a[i])
			j++;
		compare(c, j < k ? "a logit" : "an id of the top-k", row, x[i], j < k ? y[j] : y[k - 1]);
	}
}

static void compare_row(struct comparison *c, uint32_t row, const struct record_rows *known, const struct record_rows *now)
{
	if (known->status[row] != now->status[row]) {
		compare(c, "a row's status", row, 0, INFINITY);
		return;
	}
	if (known->status[row] != ROW_OK)
		return;
	compare(c, "the largest logit", row, known->max_logit[row], now->max_logit[row]);
	for (uint32_t i = 0; i < known->query.n_temperatures; i++)
		compare(c, "the log-sum-exp", row, known->lse[row * known->query.n_temperatures + i],
			now->lse[row * known->query.n_temperatures + i]);
	compare_top(c, row, known, now);
	compare(c, "the own token's logit", row, known->own_logit[row], now->own_logit[row]);
	compare(c, "the entropy", row, known->entropy[row], now->entropy[row]);
}

static double largest_logit(const struct record_rows *rows)
{
	double largest = 0;
	for (uint32_t i = 0; i < rows->n_rows; i++)
		if (rows->status[i] == ROW_OK && fabs((double)rows->max_logit[i]) > largest)
			largest = fabs((double)rows->max_logit[i]);
	return largest;
}

// Whether both are answers of the canary's question. A file is hostile, and may hold a question of an earlier release.
static bool same_question(const struct record_rows *a, const struct record_rows *b)
{
	return a->n_rows == b->n_rows && a->status && b->status && a->own_logit && b->own_logit && a->entropy && b->entropy && a->ids &&
		b->ids && !a->n_top && !b->n_top && query_equal(&a->query, &b->query) && a->sequence.n_tokens == b->sequence.n_tokens &&
		memcmp(a->sequence.tokens, b->sequence.tokens, a->sequence.n_tokens * sizeof *a->sequence.tokens) == 0;
}

static int compare_rows(const struct record_rows *known, const struct record_rows *now, double tolerance, struct error *err)
{
	if (!same_question(known, now))
		return error_set(err, ERROR_CORRUPT, NULL, "not an answer to the known question");
	struct comparison c = {.allowed = tolerance * fmax(1, largest_logit(known) / 32)};
	for (uint32_t i = 0; i < known->n_rows; i++)
		compare_row(&c, i, known, now);
	if (c.worst <= c.allowed)
		return 0;
	return error_set(err, ERROR_INTERNAL, CANARY_FIELD, "%s at position %u is off by %.3g, %.3g is allowed", c.what, c.row,
		c.worst, c.allowed);
}

int canary_compare(const struct record *known, const struct record *now, double tolerance, struct error *err)
{
	struct record_rows *a = NULL, *b = NULL;
	int r = record_decode(known, &a, err);
	if (!r)
		r = record_decode(now, &b, err);
	if (!r)
		r = compare_rows(a, b, tolerance, err);
	record_rows_free(a);
	record_rows_free(b);
	return r;
}

// -EBADMSG when there are bytes that are no record, -ENOENT when there is none.
static int read_kept(const char *path, struct record **ret_record, struct error *err)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	uint8_t *bytes = NULL;
	if (fd < 0)
		return errno == ENOENT ? -ENOENT : error_system(err, errno, path, "cannot read %s", path);
	int r = fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > KEPT_MAX_BYTES ? -EBADMSG : 0;
	if (!r && !(bytes = malloc((size_t)st.st_size + 1)))
		r = error_set(err, ERROR_MEMORY, path, "no memory for %s", path);
	if (!r && pread(fd, bytes, (size_t)st.st_size, 0) != st.st_size)
		r = error_set(err, ERROR_IO, path, "cannot read %s", path);
	if (!r && record_from_bytes(bytes, (size_t)st.st_size, ret_record, NULL))
		r = -EBADMSG;
	free(bytes);
	close(fd);
	return r;
}

static int write_kept(const char *path, const struct record *record, struct error *err)
{
	struct output o;
	size_t n;
	const void *bytes = record_bytes(record, &n);
	int r = output_open(&o, path, err);
	if (!r)
		r = output_write(&o, bytes, n);
	return output_close(&o, r);
}

static int keep_at(const char *path, const struct record *now, double tolerance, struct error *err)
{
	struct record *known = NULL;
	struct error why = {0};
	int r = read_kept(path, &known, err);
	if (!r)
		r = canary_compare(known, now, tolerance, &why);
	if (r == -ENOENT || r == -EBADMSG)
		r = write_kept(path, now, err);
	else if (why.code)
		r = error_set(err, why.code, why.field,
			      "the known answer is not the one of the first start (%s): %s; if that one was wrong, remove it",
			      path, why.message);
	record_unref(known);
	return r;
}

int canary_keep(const char *directory, const struct record *now, double tolerance, struct error *err)
{
	char id[CONTENT_ID_HEX], *path;
	content_id_to_hex(record_teacher(now), id);
	if (asprintf(&path, "%s/%.16s.canary", directory, id) < 0)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a path");
	int r = keep_at(path, now, tolerance, err);
	free(path);
	return r;
}
