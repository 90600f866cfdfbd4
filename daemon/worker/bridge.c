// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/bridge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/packing.h"
#include "daemon/model/tokenizer.h"

static int no_memory(struct error *err)
{
	return error_set(err, ERROR_MEMORY, "student-tokenizer", "out of memory");
}

// ---- which ids mean the same

struct meaning {
	const char *bytes;
	size_t n;
	uint32_t id;
	bool special, fallback;
};

static int meaning_compare(const void *a, const void *b)
{
	const struct meaning *x = a, *y = b;
	if (x->special != y->special)
		return x->special ? 1 : -1;
	int order = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
	if (order)
		return order;
	if (x->n != y->n)
		return x->n < y->n ? -1 : 1;
	if (x->fallback != y->fallback)        // "a", which texts have, goes before "<0x61>", which none has
		return x->fallback ? 1 : -1;
	return (x->id > y->id) - (x->id < y->id);
}

static bool same(const struct meaning *x, const struct meaning *y)
{
	return x->special == y->special && x->n == y->n && memcmp(x->bytes, y->bytes, x->n) == 0;
}

// Every id that stands for bytes, sorted; of equal ones the lowest id first. NULL: out of memory.
static struct meaning *meanings_list(const struct tokenizer *t, uint32_t vocab, uint32_t *ret_n)
{
	uint32_t n = 0, all = tokenizer_vocab_size(t);
	all = all < vocab ? all : vocab;
	struct meaning *list = calloc(all ? all : 1, sizeof *list);
	for (uint32_t id = 0; list && id < all; id++) {
		struct meaning m = {.id = id};
		m.bytes = tokenizer_bytes(t, id, &m.n, &m.special);
		m.fallback = tokenizer_is_fallback(t, id);
		if (m.bytes && m.n)
			list[n++] = m;
	}
	if (list)
		qsort(list, n, sizeof *list, meaning_compare);
	*ret_n = n;
	return list;
}

static void match_set(struct bridge *b, uint32_t teacher, uint32_t student)
{
	if (b->match[teacher] != BRIDGE_NONE || b->origin[student] != BRIDGE_NONE)
		return;
	b->match[teacher] = student;
	b->origin[student] = teacher;
	b->n_matched++;
}

static void ends_match(struct bridge *b)
{
	int32_t pairs[2][2] = {
		{tokenizer_eos(b->teacher), tokenizer_eos(b->student)}, {tokenizer_bos(b->teacher), tokenizer_bos(b->student)}};
	for (int i = 0; i < 2; i++)
		if (pairs[i][0] >= 0 && (uint32_t)pairs[i][0] < b->teacher_vocab && pairs[i][1] >= 0 &&
			(uint32_t)pairs[i][1] < b->student_vocab)
			match_set(b, (uint32_t)pairs[i][0], (uint32_t)pairs[i][1]);
}

static int bytes_match(struct bridge *b, struct error *err)
{
	uint32_t n_teacher, n_student, at = 0;
	struct meaning *teacher = meanings_list(b->teacher, b->teacher_vocab, &n_teacher);
	struct meaning *student = meanings_list(b->student, b->student_vocab, &n_student);
	int r = teacher && student ? 0 : no_memory(err);
	for (uint32_t i = 0; r == 0 && i < n_teacher; i++) {
		if (i && same(&teacher[i], &teacher[i - 1]))
			continue;
		while (at < n_student && meaning_compare(&student[at], &teacher[i]) < 0 && !same(&student[at], &teacher[i]))
			at++;
		if (at < n_student && same(&student[at], &teacher[i]))
			match_set(b, teacher[i].id, student[at].id);
	}
	free(teacher);
	free(student);
	return r;
}

static int arrays_new(struct bridge *b, struct error *err)
{
	b->match = reallocarray(NULL, b->teacher_vocab, sizeof *b->match);
	b->origin = reallocarray(NULL, b->student_vocab, sizeof *b->origin);
	if (!b->match || !b->origin)
		return no_memory(err);
	for (uint32_t i = 0; i < b->teacher_vocab; i++)
		b->match[i] = BRIDGE_NONE;
	for (uint32_t i = 0; i < b->student_vocab; i++)
		b->origin[i] = BRIDGE_NONE;
	return 0;
}

int bridge_open(struct bridge *b, const struct tokenizer *teacher, uint32_t teacher_vocab, const struct tokenizer *student,
		uint32_t student_vocab, struct error *err)
{
	*b = (struct bridge){.teacher = teacher, .student = student, .teacher_vocab = teacher_vocab, .student_vocab = student_vocab};
	int r = packing_prefix(teacher, &b->teacher_prefix, &b->n_teacher_prefix, err);
	r = r ? r : packing_prefix(student, &b->student_prefix, &b->n_student_prefix, err);
	r = r ? r : arrays_new(b, err);
	if (r == 0) {
		ends_match(b);
		r = bytes_match(b, err);
	}
	if (r)
		bridge_done(b);
	return r;
}

void bridge_done(struct bridge *b)
{
	free(b->match);
	free(b->origin);
	*b = (struct bridge){0};
}

// ---- a sequence

static int reserve(void *array, size_t width, uint32_t n)
{
	void **to = array, *more = reallocarray(*to, n ? n : 1, width);
	if (!more)
		return -ENOMEM;
	*to = more;
	return 0;
}

static int room_make(struct bridged *s, uint32_t n)
{
	if (n <= s->room)
		return 0;
	n = n < 256 ? 256 : n + n / 2;         // n is at most max_tokens, far below 2^31
	if (reserve(&s->tokens, sizeof *s->tokens, n) || reserve(&s->ends, sizeof *s->ends, n) || reserve(&s->bytes, sizeof *s->bytes, n) ||
	    reserve(&s->boundaries, sizeof *s->boundaries, n))
		return -ENOMEM;
	s->room = n;
	return 0;
}

static int token_add(struct bridged *s, uint32_t id, uint32_t end, uint32_t bytes, uint32_t max_tokens, struct error *err)
{
	if (s->n == max_tokens || s->cut) {
		s->cut = true;
		return 0;
	}
	if (room_make(s, s->n + 1))
		return no_memory(err);
	uint32_t before = s->n ? s->ends[s->n - 1] : 0;
	s->tokens[s->n] = id;
	s->bytes[s->n] = bytes;
	s->ends[s->n++] = end > before ? end : before;
	return 0;
}

// Bytes that go on with a character whose beginning was cut away, and those of one whose end is missing.
static size_t broken_begin(const char *text, size_t n)
{
	size_t i = 0;
	while (i < n && i < 3 && ((unsigned char)text[i] & 0xc0) == 0x80)
		i++;
	return i;
}

static size_t broken_end(const char *text, size_t n)
{
	for (size_t back = 1; back <= 3 && back <= n; back++) {
		unsigned char c = (unsigned char)text[n - back];
		size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
		if ((c & 0xc0) != 0x80)
			return length > back ? back : 0;
	}
	return 0;
}

// Text that began `at` bytes into the sequence. fresh: it is a text's beginning.
static int text_add(const struct bridge *b, struct bridged *s, const char *text, size_t n, uint32_t at, bool fresh, uint32_t max_tokens,
		    struct error *err)
{
	struct tokens t = {0};
	uint32_t before = 0;
	bool whole = fresh || tokenizer_puts_space(b->student, false);
	int r = !n ? 0 : whole ? tokenizer_encode(b->student, text, n, false, false, 3 * n + 16, &t, err)
		: tokenizer_encode_part(b->student, text, n, false, 3 * n + 16, &t, err);
	for (size_t i = 0; r == 0 && i < t.n; i++) {
		uint32_t end = t.offsets[i].end > before ? t.offsets[i].end : before;
		r = token_add(s, t.ids[i], at + end, end - before, max_tokens, err);
		before = end;
	}
	tokens_done(&t);
	return r;
}

struct walk {
	const struct bridge *bridge;
	struct bridged *to;
	uint32_t max_tokens, at, begin;        // byte of the sequence; where the text in hand began
	size_t n;                              // of its bytes
	bool first;                            // nothing came before it
	bool fresh, begun;                     // it is the beginning of a text; there was a token of it
};

static int text_end(struct walk *w, bool last, struct error *err)
{
	const char *text = w->to->text ? w->to->text : "";     // before the first byte there is none
	size_t skip = w->first ? broken_begin(text, w->n) : 0, n = w->n - skip;
	n -= last ? broken_end(text + skip, n) : 0;
	int r = text_add(w->bridge, w->to, text + skip, n, w->begin + (uint32_t)skip, w->fresh, w->max_tokens, err);
	w->first = w->first && w->n == 0;
	w->begun = false;
	w->n = 0;
	return r;
}

static int text_append(struct walk *w, const char *bytes, size_t n, struct error *err)
{
	struct bridged *s = w->to;
	if (!w->begun && bytes[0] == ' ' && tokenizer_puts_space(w->bridge->teacher, w->fresh)) {
		bytes++;       // put there by the teacher's tokenizer: the student's may put one itself
		n--;
	}
	w->begun = true;
	if (w->n == 0)
		w->begin = w->at;
	if (w->n + n + 1 > s->text_room) {
		size_t room = 2 * (w->n + n) + 1024;
		char *more = w->at < UINT32_MAX / 4 && n < UINT32_MAX / 4 ? realloc(s->text, room) : NULL;
		if (!more)
			return no_memory(err);
		s->text = more;
		s->text_room = room;
	}
	memcpy(s->text + w->n, bytes, n);
	w->n += n;
	w->at += (uint32_t)n;
	return 0;
}

static int token_walk(struct walk *w, uint32_t id, struct error *err)
{
	const struct bridge *b = w->bridge;
	bool special = false;
	size_t n = 0;
	const char *bytes = tokenizer_bytes(b->teacher, id, &n, &special);
	if (bytes && !special)
		return n ? text_append(w, bytes, n, err) : 0;
	int r = text_end(w, false, err);
	w->first = false;
	w->fresh = (int64_t)id == tokenizer_eos(b->teacher) || (int64_t)id == tokenizer_bos(b->teacher);
	uint32_t other = id < b->teacher_vocab ? b->match[id] : BRIDGE_NONE;
	if (r || other == BRIDGE_NONE)
		return r;
	return token_add(w->to, other, ++w->at, 0, w->max_tokens, err);
}

int bridge_sequence(const struct bridge *b, const uint32_t *tokens, uint32_t n, uint32_t max_tokens, struct bridged *ret, struct error *err)
{
	struct walk w = {.bridge = b, .to = ret, .max_tokens = max_tokens, .first = true, .fresh = true};
	int r = 0;
	ret->n = ret->n_boundaries = 0;
	ret->cut = false;
	for (uint32_t i = 0; i < n; i++)
		if (tokens[i] >= b->teacher_vocab)
			return error_set(err, ERROR_INVALID, "tokens", "%u is outside the teacher's vocabulary of %u", tokens[i],
				b->teacher_vocab);
	if (n > ret->n_teacher_room) {
		if (reserve(&ret->teacher_ends, sizeof *ret->teacher_ends, n))
			return no_memory(err);
		ret->n_teacher_room = n;
	}
	if (b->n_student_prefix)
		r = token_add(ret, b->student_prefix, 0, 0, max_tokens, err);
	for (uint32_t i = 0; r == 0 && i < n; i++) {
		bool prefix = i < b->n_teacher_prefix && tokens[i] == b->teacher_prefix;
		r = prefix ? 0 : token_walk(&w, tokens[i], err);
		ret->teacher_ends[i] = w.at;
	}
	r = r ? r : text_end(&w, true, err);
	if (r == 0 && ret->n)
		ret->n_boundaries = align_boundaries(ret->teacher_ends, n, ret->ends, ret->n, ret->boundaries);
	return r;
}

void bridged_done(struct bridged *s)
{
	free(s->tokens), free(s->ends), free(s->bytes), free(s->teacher_ends), free(s->boundaries), free(s->text);
	*s = (struct bridged){0};
}
