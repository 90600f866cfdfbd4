// SPDX-License-Identifier: Apache-2.0
// The vocabulary sweep, seen from the host: questions of many rows travel as a few lists through the scratch buffer, answers come back in
// one copy through pinned memory. What is done to a row is in sweep_row.cu.
#include "kernels/cuda/sweep.cuh"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

// Questions of some rows.
struct questions {
	std::vector<sweep_plan> plans;
	std::vector<uint32_t> words;
	std::vector<double> uniforms;
	uint64_t results;
	size_t bytes() const { return plans.size() * sizeof(sweep_plan) + uniforms.size() * 8 + words.size() * 4 + results * 8; }
};

static void append_scale(questions *q, double temperature)
{
	float scale = (float)(1.4426950408889634074 / temperature);
	uint32_t word;
	memcpy(&word, &scale, sizeof word);
	q->words.push_back(word);
}

// Temperature 1 goes first where the entropy is wanted: its sum serves both.
static void append_row(questions *q, const struct sweep_row *r)
{
	sweep_plan p = {};
	p.top_k = r->top_k;
	p.n_gather = r->n_gather;
	p.n_draws = r->n_draws;
	p.entropy = r->want_entropy;
	p.mean = r->want_mean;
	p.tail = r->want_tail;
	p.draw_tail = r->draw_tail;
	p.draw_tau = r->draw_tau;
	p.sums = (uint32_t)q->words.size();
	if (p.entropy)
		append_scale(q, 1);
	for (uint32_t t = 0; t < r->n_temperatures; t++)
		if (!p.entropy || r->temperatures[t] != 1)
			append_scale(q, r->temperatures[t]);
	p.gather = (uint32_t)q->words.size();
	p.n_sums = p.gather - p.sums;
	q->words.insert(q->words.end(), r->gather, r->gather + r->n_gather);
	p.uniforms = (uint32_t)q->uniforms.size();
	q->uniforms.insert(q->uniforms.end(), r->uniforms, r->uniforms + r->n_draws);
	p.results = q->results;
	q->results = sweep_top_at(p) + p.top_k;
	q->plans.push_back(p);
}

static void take_top(struct sweep_row *row, const sweep_plan &p, const double *all)
{
	const sweep_pair *from = (const sweep_pair *)(all + sweep_top_at(p));
	std::vector<sweep_pair> sorted;
	if (!(all[p.results + SWEEP_SORTED] > 0)) {      // in id order
		sorted.assign(from, from + p.top_k);
		std::stable_sort(sorted.begin(), sorted.end(), [](const sweep_pair &a, const sweep_pair &b) { return a.logit > b.logit; });
		from = sorted.data();
	}
	for (uint32_t i = 0; i < p.top_k; i++) {
		row->ids[i] = from[i].id;
		row->logits[i] = from[i].logit;
	}
}

static void take_row(struct sweep_row *row, const sweep_plan &p, const double *all)
{
	const double *fixed = all + p.results, *sums = fixed + SWEEP_FIXED, *drawn = all + sweep_drawn_at(p);
	row->not_finite = isnan(fixed[SWEEP_MAX]);
	if (row->not_finite)
		return;
	row->max_logit = fixed[SWEEP_MAX];
	if (p.entropy)
		row->entropy = fixed[SWEEP_ENTROPY];
	if (p.mean)
		row->mean = fixed[SWEEP_MEAN];
	for (uint32_t i = 0, next = p.entropy; i < row->n_temperatures; i++) {
		bool shared = p.entropy && row->temperatures[i] == 1;
		row->lse[i] = row->max_logit / (double)row->temperatures[i] + sums[shared ? 0 : next];
		next += !shared;
	}
	for (uint32_t i = 0; i < p.n_gather; i++)
		row->gathered[i] = all[sweep_gathered_at(p) + i];
	if (p.top_k)
		take_top(row, p, all);
	if (p.tail)
		row->tail_lse = fixed[SWEEP_TAIL];
	if (p.n_draws)
		row->draw_lse = fixed[SWEEP_DRAW_LSE];
	for (uint32_t i = 0; i < p.n_draws; i++) {
		row->drawn[i] = (uint32_t)drawn[i];
		row->drawn_logits[i] = drawn[p.n_draws + i];
	}
}

static bool fits(const questions &q)
{
	return q.results * 8 <= CUDA_RESULT_BYTES && q.bytes() + 64 <= CUDA_SCRATCH_BYTES;
}

// As many of the rows as fit: how much a row takes is known once its question is written, so the last one may have to go again.
static uint32_t ask(questions *q, const struct sweep_row *rows, uint32_t n)
{
	q->results = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t results = q->results;
		append_row(q, &rows[i]);
		if (fits(*q))
			continue;
		q->plans.pop_back();
		q->results = results;
		return i;
	}
	return n;
}

// Returns how many rows are answered (0: the backend failed).
static uint32_t sweep_chunk(backend *be, const float *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	cuda *c = cuda_of(be);
	questions q;
	n = ask(&q, rows, n);
	if (!n)
		backend_fail(be, "a row's answer does not fit the %u bytes kept for answers", CUDA_RESULT_BYTES);
	size_t at_uniforms = (n * sizeof(sweep_plan) + 15) / 16 * 16, at_results = at_uniforms + q.uniforms.size() * 8,
	       at_words = at_results + q.results * 8;
	char *device = (char *)c->scratch;
	if (backend_failed(be) || !cuda_send(be, device, q.plans.data(), n * sizeof(sweep_plan), "sending questions") ||
	    !cuda_send(be, device + at_uniforms, q.uniforms.data(), q.uniforms.size() * 8, "sending questions") ||
	    !cuda_send(be, device + at_words, q.words.data(), q.words.size() * 4, "sending questions"))
		return 0;
	sweep_input in = {logits, V, packs_fit<4>(logits, V), (const sweep_plan *)device, (const uint32_t *)(device + at_words), (const double *)(device + at_uniforms),
			  (double *)(device + at_results)};
	sweep_launch(be, in, n);
	if (backend_failed(be) ||
	    !cuda_check(be, cudaMemcpyAsync(c->results, in.results, q.results * 8, cudaMemcpyDeviceToHost, c->stream), "reading answers") ||
	    !cuda_check(be, cudaStreamSynchronize(c->stream), "sweep"))
		return 0;
	for (uint32_t i = 0; i < n; i++)
		take_row(&rows[i], q.plans[i], (const double *)c->results);
	return n;
}

void cuda_sweep(backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	for (uint32_t done = 0, step; done < n; done += step) {
		step = backend_failed(be) ? 0 : sweep_chunk(be, real_of(logits) + (size_t)done * V, n - done, V, rows + done);
		for (uint32_t i = done; !step && i < n; i++)
			rows[i].not_finite = true;    // a failed device gives no numbers at all
		if (!step)
			return;
	}
}
