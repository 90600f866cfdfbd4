// SPDX-License-Identifier: Apache-2.0
// The plan's arithmetic against numbers worked out by hand.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "clients/kdctl/plan.h"
#include "daemon/model/config.h"

static void near(double got, double want, double relative)
{
	if (!(fabs(got - want) <= relative * fabs(want)))
		fail_msg("%.17g, wanted %.17g", got, want);
}

// 7e9 parameters of 2 bytes, 4096 tokens, 100 TFLOP/s at half, 1 TB/s: 2 * 7e9 * 4096 / 5e13 s of products, 14e9 / 1e12 s of memory.
static void a_roof_is_products_or_bytes(void **state)
{
	(void)state;
	struct plan_device d = {5e13, 1e12, 0};
	struct plan_operator prefill = {"prefill", 2 * 7e9 * 4096, 14e9, 0, 0}, decode = {"decode", 2 * 7e9, 14e9, 0, 0};
	near(plan_seconds(&d, &prefill, 1), 1.146880, 1e-12);
	near(plan_seconds(&d, &decode, 1), 0.014, 1e-12);
	struct plan_operator both[] = {prefill, decode};
	near(plan_seconds(&d, both, 2), 1.160880, 1e-12);
}

// 8 GFLOP of products and 1 GFLOP over 4 GB, which takes 0.2 s: 0.8 s are left of a second for the products.
// In 0.1 s the bytes alone do not fit.
static void what_was_measured_is_predicted(void **state)
{
	(void)state;
	struct plan_device d = {0, 2e10, 0};
	struct plan_operator ops[] = {{"products", 8e9, 1e9, 0, 0}, {"attention", 1e9, 4e9, 0, 0}};
	d.flops = plan_fit_flops(&d, ops, 2, 1);
	near(d.flops, 1e10, 1e-9);
	near(plan_seconds(&d, ops, 2), 1, 1e-9);
	near(plan_fit_flops(&d, ops, 2, 0.1), 9e10, 1e-12);
}

static const struct architecture tiny = {.n_layers = 2, .width = 8, .ffn_width = 12, .n_heads = 4, .n_kv_heads = 2, .head_size = 2,
					 .vocab_size = 100, .context_length = 64};

// By hand: q, k, v 16 x 8, output 8 x 8, gate and up 24 x 8, down 8 x 12: 480 a layer; head 800. Row i of 4 sees i + 1 keys, 2.5 on
// average, 4 * 8 products each.
static void a_pass_counts_every_product(void **state)
{
	(void)state;
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	struct plan_pass pass = plan_scoring(4, 4, 2);
	size_t n = plan_operators(&tiny, &pass, ops);
	assert_int_equal(n, 5);
	near(plan_active_parameters(&tiny), 2 * 480 + 800, 1e-12);
	near(plan_flop(ops, n), 2 * 4 * (2 * 480 + 800) + 2 * 4 * 2.5 * 4 * 8, 1e-12);
	near(ops[0].bytes, 2 * (16 * 8 * 2 + 4 * (16 + 8) * 4), 1e-12);
	near(ops[4].bytes, 800 * 2 + 4 * 108 * 4, 1e-12);
	// 3 answers of 10 positions: each key and value (2 * 2 * 2 floats a layer) is read once
	pass = plan_generation(3, 10, 2);
	n = plan_operators(&tiny, &pass, ops);
	near(ops[1].bytes, 2 * (30 * 8 + 3 * (16 + 8)) * 4, 1e-12);
	near(ops[1].flop, 2 * 3 * 10 * 4 * 8, 1e-12);
}

static void windows_bound_what_a_row_reads(void **state)
{
	(void)state;
	struct architecture a = tiny;
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	struct plan_pass pass = plan_generation(1, 40, 2);
	a.window = 8;
	a.sliding[1] = true;
	plan_operators(&a, &pass, ops);
	near(ops[1].flop, (40 + 8) * 4 * 8, 1e-12);
}

// 6 experts of which a row uses 2: each row pays for 2, and memory for as many as 2 rows (4) or 100 rows (all 6) can use.
static void experts_cost_what_is_used(void **state)
{
	(void)state;
	struct architecture a = tiny;
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	a.n_experts = 6;
	a.n_experts_used = 2;
	struct plan_pass pass = plan_generation(2, 1, 1);
	plan_operators(&a, &pass, ops);
	near(ops[3].flop, 2 * 2 * 2 * (288 * 2 + 48), 1e-12);
	near(ops[3].bytes, 2 * ((288 * 4 + 48) + 2 * 2 * (24 + 24 + 16) * 4), 1e-12);
	pass = plan_generation(100, 1, 1);
	plan_operators(&a, &pass, ops);
	near(ops[3].bytes, 2 * ((288 * 6 + 48) + 100 * 2 * (24 + 24 + 16) * 4), 1e-12);
	near(plan_active_parameters(&a), 2 * (128 + 64 + 2 * 288 + 48) + 800, 1e-12);
}

static void memory_is_counted(void **state)
{
	(void)state;
	near(plan_cache_bytes(&tiny, 1000), 2 * 2 * 2 * 2 * 1000 * 4, 1e-12);
	// rows of 3 * 8 + 16 + 8 + 24 + 12 + 2 * 8 floats, and 10 rows of logits
	near(plan_work_bytes(&tiny, 10), 4 * (10 * 100 + 10 * 100), 1e-12);
	near(plan_work_bytes(&tiny, 1000), 4 * (1000 * 100 + 256 * 100), 1e-12);
	assert_true(plan_training_bytes(&tiny, 10) > 16 * (double)architecture_n_parameters(&tiny));
}

// A layer has 480 elements (of 40,000 bytes, to matter), the head 800. Beside matrices: 80 MiB, 4 * (10 * 100 + 10 * 100) of work, 256 rows
// of 100 logits; and buffers, a sixteenth of the cap.
static void a_cap_leaves_on_disk_what_has_no_room(void **state)
{
	(void)state;
	struct architecture a = tiny;
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	struct plan_device d = {1e12, 1e12, 1e9};
	double beside = 80 * 0x1p20 + 8000 + 256 * 100 * 4;
	a.tied_head = true;
	struct plan_cap cap = {beside + 4e4 * (960 + 800), 4e4, 0, 10, 0};
	struct plan_stream s = plan_streaming(&a, &cap, &d);
	assert_true(s.file_bytes == 0 && s.layers == 0 && !s.head);
	cap.bytes = (beside + 4e4 * 800 + 4e4 * 480) * 16 / 15;      // the head and half of the layers
	s = plan_streaming(&a, &cap, &d);
	near(s.needed_bytes, beside + cap.bytes / 16, 1e-12);
	assert_false(s.head);
	near(s.layers, 0.5, 1e-4);
	near(s.file_bytes, 4e4 * 480, 1e-4);
	near(s.hidden_batch, 2e7, 1e-12);                     // 2 * 2e7 / 1e12 s an element = 4e4 / 1e9
	cap.bytes = beside * 16 / 15;
	s = plan_streaming(&a, &cap, &d);
	assert_true(s.head);
	near(s.file_bytes, 4e4 * (960 + 800), 1e-6);
	struct plan_pass pass = plan_scoring(300, 4, 4);
	size_t n = plan_operators(&a, &pass, ops);
	plan_read(&a, &s, 4, &pass, ops, n);                  // of 4 bytes after all
	near(ops[0].read, 4 * 2 * 16 * 8, 1e-6);
	near(ops[2].read, 4 * 2 * 8 * 8, 1e-6);
	near(ops[3].read, 4 * 2 * 288, 1e-6);
	near(ops[4].read, 2 * 4 * 800, 1e-6);                 // two tiles of rows
	d.disk = 1;                                           // slower than anything else: it is all that counts
	near(plan_seconds(&d, &ops[4], 1), 6400, 1e-6);
	a.tied_head = false;
	near(plan_streaming(&a, &cap, &d).file_bytes, 4e4 * (960 + 1600), 1e-6);
}

// The same in 10,000 bytes an element as stored.
static void a_cap_keeps_as_stored_what_fits_so(void **state)
{
	(void)state;
	struct architecture a = tiny;
	struct plan_operator ops[PLAN_MAX_OPERATORS];
	struct plan_device d = {1e12, 1e12, 1e9};
	double beside = 80 * 0x1p20 + 8000 + 256 * 100 * 4, least = beside + 16 * 0x1p20 + 1e4 * 1760;
	a.tied_head = true;
	struct plan_cap cap = {least, 4e4, 1e4 * 1760, 10, 0};
	struct plan_stream s = plan_streaming(&a, &cap, &d);
	assert_true(s.head && s.layers == 1 && s.file_bytes == 0);
	near(s.stored_bytes, 1e4 * 1760, 1e-9);
	cap.bytes = least + 3e4 * (800 + 240);                // what the head and a quarter of the layers take more when packed
	s = plan_streaming(&a, &cap, &d);
	assert_false(s.head);
	near(s.layers, 0.75, 1e-6);
	near(s.stored_bytes, 1e4 * 720, 1e-6);
	struct plan_pass pass = plan_scoring(300, 4, 4);
	size_t n = plan_operators(&a, &pass, ops);
	double before = plan_seconds(&d, ops, n);
	plan_read(&a, &s, 4, &pass, ops, n);
	assert_true(ops[0].read == 0 && ops[4].packed == 0);
	near(ops[0].packed, 0.75 * 4 * 2 * 16 * 8, 1e-6);
	near(plan_seconds(&d, ops, n), before + 2 * 0.75 * 4 * 960 / 1e12, 1e-9);
	cap.bytes = least - 1;
	assert_true(plan_streaming(&a, &cap, &d).stored_bytes == 0);
}

// The real teacher's top-64 rows over 49,152 ids take 152.15 bytes as u8 and 212 as f16 (tests/bench/results/bytes_per_token.csv).
static void rows_are_as_long_as_measured(void **state)
{
	(void)state;
	near(plan_row_bytes(49152, 64, 1), 152.15, 0.05);
	near(plan_row_bytes(49152, 64, 2), 212, 0.05);
	near(plan_row_bytes(100, 0, 2), 16, 1e-12);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_roof_is_products_or_bytes), cmocka_unit_test(what_was_measured_is_predicted),
		cmocka_unit_test(a_pass_counts_every_product),
		cmocka_unit_test(windows_bound_what_a_row_reads), cmocka_unit_test(experts_cost_what_is_used),
		cmocka_unit_test(memory_is_counted), cmocka_unit_test(a_cap_leaves_on_disk_what_has_no_room),
		cmocka_unit_test(a_cap_keeps_as_stored_what_fits_so),
		cmocka_unit_test(rows_are_as_long_as_measured),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
