// SPDX-License-Identifier: Apache-2.0
// The real teacher against transformers in float32 on 20 texts of 32 to 1024 tokens. Needs the model file: $KDSERVED_TEACHER, else
// where the quick start keeps it; exit 77 when it is not there.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/golden/golden.h"

#define MAX_POSITIONS 1024
#define TOP_K 64

static char teacher_path[4096];

// What transformers said of one row.
struct golden_row {
	uint32_t position, *top_ids;
	double lse, *own, *top_logits, *logits;    // own: one value, NaN at the last token
};

static void row_read(struct golden_row *r, struct golden_file *g, uint32_t n_ids)
{
	r->position = reader_u32(&g->reader);
	r->lse = reader_f64(&g->reader);
	r->own = golden_f32s(g, 1);
	r->top_ids = golden_u32s(g, TOP_K);
	r->top_logits = golden_f32s(g, TOP_K);
	r->logits = golden_f32s(g, n_ids);
}

static void row_done(struct golden_row *r)
{
	free(r->own);
	free(r->top_ids);
	free(r->top_logits);
	free(r->logits);
}

// Our answer to every position of a text: the golden ids, then the own token.
struct answer {
	struct sweep_row *rows;
	uint32_t *gather, *ids;
	double *lse, *gathered, *logits;
};

static void answer_init(struct answer *a, const uint32_t *tokens, uint32_t n, const uint32_t *ids, uint32_t n_ids)
{
	static const float temperature = 1;
	uint32_t n_gather = n_ids + 1;
	a->rows = golden_array(n, sizeof *a->rows);
	a->gather = golden_array((size_t)n * n_gather, sizeof *a->gather);
	a->gathered = golden_array((size_t)n * n_gather, sizeof *a->gathered);
	a->lse = golden_array(n, sizeof *a->lse);
	a->ids = golden_array((size_t)n * TOP_K, sizeof *a->ids);
	a->logits = golden_array((size_t)n * TOP_K, sizeof *a->logits);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t *gather = a->gather + (size_t)i * n_gather;
		for (uint32_t j = 0; j < n_ids; j++)
			gather[j] = ids[j];
		gather[n_ids] = i + 1 < n ? tokens[i + 1] : 0;
		a->rows[i] = (struct sweep_row){.top_k = TOP_K, .n_temperatures = 1, .temperatures = &temperature, .lse = &a->lse[i],
						.n_gather = n_gather, .gather = gather, .gathered = a->gathered + (size_t)i * n_gather,
						.ids = a->ids + (size_t)i * TOP_K, .logits = a->logits + (size_t)i * TOP_K};
	}
}

static void answer_done(struct answer *a)
{
	free(a->rows);
	free(a->gather);
	free(a->gathered);
	free(a->lse);
	free(a->ids);
	free(a->logits);
}

struct worst { double logits, lse, own, top; uint32_t n_swapped, n_entries; };

// The transformers logit of an id of ours at this row; where it is not in its top-k all we know is that it is not above the last of it.
static double golden_logit(const struct golden_row *want, uint32_t id, double ours)
{
	for (uint32_t k = 0; k < TOP_K; k++)
		if (want->top_ids[k] == id)
			return want->top_logits[k];
	return fmin(ours, want->top_logits[TOP_K - 1]);
}

static void compare_row(const struct sweep_row *got, const struct golden_row *want, uint32_t n_ids, struct worst *w)
{
	assert_false(got->not_finite);
	w->lse = fmax(w->lse, fabs(got->lse[0] - want->lse));
	if (!isnan(want->own[0]))
		w->own = fmax(w->own, fabs(got->gathered[n_ids] - want->own[0]));
	for (uint32_t k = 0; k < TOP_K; k++) {
		w->n_entries++;
		if (got->ids[k] == want->top_ids[k])
			continue;
		w->n_swapped++;
		w->top = fmax(w->top, fabs(golden_logit(want, got->ids[k], got->logits[k]) - want->top_logits[k]));
	}
}

// One text; returns the relative logit error over its golden rows.
static double compare_text(struct golden_model *m, struct golden_file *g, const uint32_t *ids, uint32_t n_ids, struct worst *w)
{
	uint32_t n = reader_u32(&g->reader);
	assert_in_range(n, 1, MAX_POSITIONS);
	uint32_t *tokens = golden_u32s(g, n), n_rows = reader_u32(&g->reader);
	struct answer a;
	answer_init(&a, tokens, n, ids, n_ids);
	golden_score(m, tokens, &n, 1, a.rows);
	double *got = golden_array((size_t)n_rows * n_ids, sizeof *got), *want = golden_array((size_t)n_rows * n_ids, sizeof *want);
	for (uint32_t i = 0; i < n_rows; i++) {
		struct golden_row row;
		row_read(&row, g, n_ids);
		assert_in_range(row.position, 0, n - 1);
		compare_row(&a.rows[row.position], &row, n_ids, w);
		for (uint32_t j = 0; j < n_ids; j++) {
			got[(size_t)i * n_ids + j] = a.rows[row.position].gathered[j];
			want[(size_t)i * n_ids + j] = row.logits[j];
		}
		row_done(&row);
	}
	double error = relative_error(got, want, (size_t)n_rows * n_ids);
	printf("# %4u tokens: relative logit error %.2e\n", n, error);
	answer_done(&a);
	free(tokens);
	free(got);
	free(want);
	return error;
}

static struct worst compare(enum backend_numeric numeric)
{
	struct golden_file g;
	struct golden_model m;
	struct worst w = {0};
	golden_open(&g, "teacher.bin", "KDGT");
	uint32_t n_texts = reader_u32(&g.reader), n_ids = reader_u32(&g.reader), *ids = golden_u32s(&g, n_ids);
	golden_model_open(&m, teacher_path, DEVICE, numeric, false, MAX_POSITIONS);
	assert_int_equal(n_texts, 20);
	for (uint32_t i = 0; i < n_texts; i++)
		w.logits = fmax(w.logits, compare_text(&m, &g, ids, n_ids, &w));
	printf("# %s, worst of %u texts: relative logit error %.2e, lse %.2e, own logit %.2e; top-%d: %u of %u ids differ, "
	       "by at most %.2e\n", m.backend->numeric, n_texts, w.logits, w.lse, w.own, TOP_K, w.n_swapped, w.n_entries, w.top);
	golden_model_close(&m);
	golden_close(&g);
	free(ids);
	return w;
}

static void f32_equals_transformers(void **state)
{
	(void)state;
	struct worst w = compare(BACKEND_NUMERIC_F32);
	assert_true(w.logits <= 1e-5);
	assert_true(w.lse <= 1e-4);
	assert_true(w.own <= 1e-3);
	assert_true(w.top <= 1e-5);    // ids differ only where transformers has a tie
}

static void the_fast_path_is_close(void **state)
{
	(void)state;
	assert_true(compare(BACKEND_NUMERIC_AUTO).logits <= 6e-2);     // of bfloat16 3.5e-2, in the shortest text; of most texts under 1e-2
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(f32_equals_transformers),
		cmocka_unit_test(the_fast_path_is_close),
	};
	if (!golden_teacher(teacher_path, sizeof teacher_path)) {
		fprintf(stderr, "skipped: no teacher at %s\n", teacher_path);
		return 77;
	}
	if (!golden_device_found())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
