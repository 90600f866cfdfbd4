// SPDX-License-Identifier: Apache-2.0
// The vocabulary sweep, seen from the host: questions of many rows travel as a few lists, answers come back in one copy to pinned memory.
// Two may be under way: while the host reads one, the device works on the next. What is done to a row is in sweep_row.cu.
#include "kernels/cuda/sweep.cuh"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <new>
#include <vector>

extern "C" {
#include "common/error.h"
}

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
	return q.bytes() + 64 <= CUDA_SWEEP_BYTES;
}

// As many of the rows as fit: how much a row takes is known once its question is written, so the last one may have to go again.
static uint32_t ask(questions *q, const struct sweep_row *rows, uint32_t n)
{
	*q = questions{};
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

// Rows whose results are on their way: the device's place for their questions and results, and the host's for results.
struct started {
	questions q;
	struct sweep_row *rows;
	uint32_t n;
	char *device, *pinned;
	cudaEvent_t swept, copied;
};

// Copies have a stream of their own: the device goes on while they travel.
struct cuda_sweeps {
	started list[2];              // in turn
	uint32_t first, n;            // the oldest under way, and how many are
	cudaStream_t copies;
};

int cuda_sweeps_open(backend *be, struct error *err)
{
	cuda_sweeps *s = cuda_of(be)->sweeps = new (std::nothrow) cuda_sweeps();
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for backend cuda");
	bool good = cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking) == cudaSuccess;
	for (started &one : s->list)
		good = good && cudaEventCreateWithFlags(&one.swept, cudaEventDisableTiming) == cudaSuccess &&
		       cudaEventCreateWithFlags(&one.copied, cudaEventDisableTiming) == cudaSuccess &&
		       cudaMallocHost(&one.pinned, CUDA_SWEEP_BYTES) == cudaSuccess;
	if (!good)
		return error_set(err, ERROR_MEMORY, "device", "the GPU refused a stream, an event or pinned memory: %s",
				 cudaGetErrorString(cudaGetLastError()));
	for (started &one : s->list) {
		one.device = (char *)cuda_alloc(be, CUDA_SWEEP_BYTES, "answers", err);
		if (!one.device)
			return error_errno(ERROR_MEMORY);
	}
	return 0;
}

void cuda_sweeps_close(cuda *c)
{
	cuda_sweeps *s = c->sweeps;
	if (!s)
		return;
	if (s->n)
		cudaStreamSynchronize(s->copies);
	for (started &one : s->list) {
		if (one.swept)
			cudaEventDestroy(one.swept);
		if (one.copied)
			cudaEventDestroy(one.copied);
		cudaFreeHost(one.pinned);
	}
	if (s->copies)
		cudaStreamDestroy(s->copies);
	delete s;
	c->sweeps = NULL;
}

static void give_up(struct sweep_row *rows, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		rows[i].not_finite = true;    // a failed device gives no numbers at all
}

// Questions to the device, the sweep, and the results on their way back. False when the backend failed.
static bool send_off(backend *be, started *s, const float *logits, uint32_t V)
{
	cuda *c = cuda_of(be);
	const questions &q = s->q;
	size_t at_uniforms = (s->n * sizeof(sweep_plan) + 15) / 16 * 16, at_results = at_uniforms + q.uniforms.size() * 8,
	       at_words = at_results + q.results * 8;
	if (backend_failed(be) || !cuda_send(be, s->device, q.plans.data(), s->n * sizeof(sweep_plan), "sending questions") ||
	    !cuda_send(be, s->device + at_uniforms, q.uniforms.data(), q.uniforms.size() * 8, "sending questions") ||
	    !cuda_send(be, s->device + at_words, q.words.data(), q.words.size() * 4, "sending questions"))
		return false;
	sweep_input in = {logits, V, packs_fit<4>(logits, V), (const sweep_plan *)s->device, (const uint32_t *)(s->device + at_words),
			  (const double *)(s->device + at_uniforms), (double *)(s->device + at_results)};
	sweep_launch(be, in, s->n);
	cudaStream_t copies = c->sweeps->copies;
	return !backend_failed(be) && cuda_check(be, cudaEventRecord(s->swept, c->stream), "sweep") &&
	       cuda_check(be, cudaStreamWaitEvent(copies, s->swept, 0), "sweep") &&
	       cuda_check(be, cudaMemcpyAsync(s->pinned, in.results, q.results * 8, cudaMemcpyDeviceToHost, copies), "reading answers") &&
	       cuda_check(be, cudaEventRecord(s->copied, copies), "reading answers");
}

// As many rows as fit in one piece. Returns how many (0: the backend failed).
static uint32_t start_some(backend *be, started *s, const float *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	s->rows = rows;
	s->n = backend_failed(be) ? 0 : ask(&s->q, rows, n);
	if (!s->n)
		backend_fail(be, "a row's question and answer do not fit the %u bytes kept for them", CUDA_SWEEP_BYTES);
	if (!send_off(be, s, logits, V))
		s->n = 0;
	return s->n;
}

static void take(backend *be, started *s)
{
	uint32_t n = s->n;
	s->n = 0;
	if (!n)
		return;
	if (backend_failed(be) || !cuda_check(be, cudaEventSynchronize(s->copied), "sweep")) {
		give_up(s->rows, n);
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		take_row(&s->rows[i], s->q.plans[i], (const double *)s->pinned);
}

// All but the last piece are complete when this returns.
void cuda_sweep_start(backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	cuda_sweeps *all = cuda_of(be)->sweeps;
	assert(all->n < 2);
	started *s = &all->list[(all->first + all->n++) % 2];
	s->n = 0;
	for (uint32_t done = 0, some; done < n; done += some) {
		take(be, s);
		some = start_some(be, s, real_of(logits) + (size_t)done * V, n - done, V, rows + done);
		if (!some) {
			give_up(rows + done, n - done);
			return;
		}
	}
}

void cuda_sweep_finish(backend *be)
{
	cuda_sweeps *all = cuda_of(be)->sweeps;
	assert(all->n > 0);
	take(be, &all->list[all->first]);
	all->first = (all->first + 1) % 2;
	all->n--;
}

void cuda_sweep(backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows)
{
	assert(!cuda_of(be)->sweeps->n);
	cuda_sweep_start(be, logits, n, V, rows);
	cuda_sweep_finish(be);
}
