// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/lexicon.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/log.h"
#include "daemon/model/model.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/trainer.h"

// Bytes of text of each of the teacher's ids, for bits per byte.
static int bytes_count(struct trainer *t, struct error *err)
{
	t->id_bytes = calloc(t->vocab_size, sizeof *t->id_bytes);
	if (!t->id_bytes)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t id = 0; id < t->vocab_size && id < tokenizer_vocab_size(t->tokenizer); id++) {
		size_t n = 0;
		bool special = false;
		if (tokenizer_bytes(t->tokenizer, id, &n, &special) && !special)
			t->id_bytes[id] = (uint32_t)n;
	}
	return 0;
}

// Vocabulary and context of the student that is to be: a model's own, or what a random one will have.
static int shape_find(const struct trainer *t, uint32_t *ret_vocab, uint32_t *ret_context, struct error *err)
{
	struct model_file *file = NULL;
	*ret_vocab = tokenizer_vocab_size(t->student_tokenizer);
	*ret_context = (uint32_t)t->settings->context_length;
	if (strcmp(t->settings->student, "random") == 0)
		return 0;
	int r = model_file_open(t->settings->student, &file, err);
	if (r)
		return r;
	uint32_t named = *ret_vocab;
	*ret_vocab = model_file_architecture(file)->vocab_size;
	*ret_context = model_file_architecture(file)->context_length;
	model_file_close(file);
	return named <= *ret_vocab ? 0 : error_set(err, ERROR_CONFLICT, "student-tokenizer", "has %u ids, the student %u",
		named, *ret_vocab);
}

// The longest that a sequence of the run becomes, and how much of it both can be compared at.
static int lengths_measure(struct trainer *t, uint32_t context, struct error *err)
{
	struct bridged s = {0};
	uint64_t n_teacher = 0, n_student = 0, n_boundaries = 0, n_cut = 0;
	uint32_t longest = 0;
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < dataset_n_sequences(t->dataset); i++) {
		struct sequence one = dataset_at(t->dataset, i);
		r = atomic_load(t->options.stop) ? error_set(err, ERROR_CANCELLED, NULL, "asked to stop")
			: bridge_sequence(&t->bridge, one.tokens, one.n_tokens, context, &s, err);
		n_teacher += one.n_tokens;
		n_student += s.n;
		n_boundaries += s.n_boundaries;
		n_cut += s.cut;
		longest = s.n > longest ? s.n : longest;
	}
	bridged_done(&s);
	if (r)
		return r;
	if (longest < 2 || n_boundaries == 0)
		return error_set(err, ERROR_INVALID, "student-tokenizer",
			"and the teacher's tokenizer have no token of the corpus in common");
	t->student_length = longest;
	log_info("student's tokenizer: %u of its %u ids are the teacher's too; %" PRIu64 " tokens for the teacher's %" PRIu64
		 ", compared after %.1f %% of them", t->bridge.n_matched, t->bridge.student_vocab, n_student, n_teacher,
		 100 * (double)n_boundaries / (double)n_student);
	if (n_cut)
		log_warning("%" PRIu64 " sequences are longer than the student's context of %u tokens: the rest of them is left out",
			n_cut, context);
	return 0;
}

static int tokenizer_bridge(struct trainer *t, struct error *err)
{
	uint32_t vocab, context;
	int r = tokenizer_open_path(t->settings->student_tokenizer, &t->student_tokenizer, err);
	if (r)
		return r;
	struct content_id own = tokenizer_id(t->student_tokenizer), teacher = tokenizer_id(t->tokenizer);
	if (memcmp(&own, &teacher, sizeof own) == 0) {
		log_notice("student-tokenizer is the teacher's: nothing to align");
		t->student_tokenizer = tokenizer_close(t->student_tokenizer);
		return 0;
	}
	r = shape_find(t, &vocab, &context, err);
	r = r ? r : bridge_open(&t->bridge, t->tokenizer, t->vocab_size, t->student_tokenizer, vocab, err);
	if (r)
		return r;
	t->bridged = true;
	t->student_vocab = vocab;
	r = lengths_measure(t, context, err);
	if (r == 0 && t->student_length * (uint64_t)t->settings->micro_batch > 1 << 20)
		r = error_set(err, ERROR_TOO_LARGE, "micro-batch", "%lld sequences of %u tokens of the student are over 1048576 positions",
			      (long long)t->settings->micro_batch, t->student_length);
	return r;
}

int lexicon_prepare(struct trainer *t, struct error *err)
{
	int r = bytes_count(t, err);
	t->student_vocab = t->vocab_size;
	t->student_length = (uint32_t)t->settings->sequence_length;
	if (r == 0 && t->settings->student_tokenizer)
		r = tokenizer_bridge(t, err);
	return r;
}

void lexicon_done(struct trainer *t)
{
	bridge_done(&t->bridge);
	tokenizer_close(t->student_tokenizer);
	free(t->id_bytes);
}
