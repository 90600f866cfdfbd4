// SPDX-License-Identifier: Apache-2.0
// UTF-8 repair and NFC. NFC works on segments between characters that neither change nor combine backwards: decompose, sort marks by
// combining class (stable), compose. Sorting a segment is O(n log n) however long a run of marks someone sends.
#include "daemon/model/normalizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/unicode.h"

// One character on its way through NFC and the caller's bytes behind it.
struct mark {
	uint32_t c, begin, end;
	uint32_t order;               // place in the segment, so that sorting is stable
	uint8_t class;                // canonical combining class
};

struct marks {
	struct mark *list;
	size_t n, capacity;
};

static int text_reserve(struct source_text *t, size_t more)
{
	size_t capacity = t->capacity ? t->capacity : 256;

	if (t->n + more <= t->capacity)
		return 0;
	while (capacity < t->n + more)
		capacity *= 2;
	char *owned = realloc(t->owned, capacity);
	uint32_t *begin = owned ? realloc(t->begin, capacity * sizeof(*begin)) : NULL;
	uint32_t *end = begin ? realloc(t->end, capacity * sizeof(*end)) : NULL;

	if (owned)
		t->bytes = t->owned = owned;
	if (begin)
		t->begin = begin;
	if (!end)
		return -ENOMEM;
	t->end = end;
	t->capacity = capacity;
	return 0;
}

// Bytes that all stand for one caller's range.
static int text_append(struct source_text *t, const char *bytes, size_t n, uint32_t begin, uint32_t end)
{
	if (text_reserve(t, n))
		return -ENOMEM;
	for (size_t i = 0; i < n; i++, t->n++) {
		t->owned[t->n] = bytes[i];
		t->begin[t->n] = begin;
		t->end[t->n] = end;
	}
	return 0;
}

// Bytes copied unchanged: each keeps its own origin.
static int text_copy(struct source_text *t, const struct source_text *in, size_t begin, size_t end)
{
	if (text_reserve(t, end - begin))
		return -ENOMEM;
	for (size_t i = begin; i < end; i++, t->n++) {
		t->owned[t->n] = in->bytes[i];
		t->begin[t->n] = source_text_begin(in, i);
		t->end[t->n] = source_text_end(in, i);
	}
	return 0;
}

int source_text_init(struct source_text *t, const char *bytes, size_t n)
{
	const uint8_t *p = (const uint8_t *)bytes;
	struct source_text given = { .bytes = bytes, .n = n };
	size_t good = 0;
	int ret = 0;

	memset(t, 0, sizeof(*t));
	for (int length; good < n && (length = unicode_utf8_length(p + good, n - good)) > 0;)
		good += (size_t)length;
	if (good == n) {
		*t = given;
		return 0;
	}
	ret = text_copy(t, &given, 0, good);
	for (size_t i = good; i < n && !ret;) {
		int length = unicode_utf8_length(p + i, n - i);

		ret = length > 0 ? text_copy(t, &given, i, i + (size_t)length)
				 : text_append(t, "\xef\xbf\xbd", 3, (uint32_t)i, (uint32_t)(i + (size_t)-length));
		i += (size_t)abs(length);
	}
	if (ret)
		source_text_done(t);
	return ret;
}

void source_text_view(struct source_text *t, const struct source_text *in, size_t begin, size_t end)
{
	*t = (struct source_text){
		.bytes = in->bytes + begin, .n = end - begin, .base = in->base + (uint32_t)begin,
		.begin = in->begin ? in->begin + begin : NULL, .end = in->end ? in->end + begin : NULL,
	};
}

void source_text_done(struct source_text *t)
{
	if (t->owned) {    // else begin and end are a view's
		free(t->begin);
		free(t->end);
		free(t->owned);
	}
	memset(t, 0, sizeof(*t));
}

static int marks_append(struct marks *m, uint32_t c, uint32_t begin, uint32_t end)
{
	if (m->n == m->capacity) {
		size_t capacity = m->capacity ? 2 * m->capacity : 64;
		struct mark *list = realloc(m->list, capacity * sizeof(*list));

		if (!list)
			return -ENOMEM;
		m->list = list;
		m->capacity = capacity;
	}
	m->list[m->n] = (struct mark){ c, begin, end, (uint32_t)m->n, unicode_combining_class(c) };
	m->n++;
	return 0;
}

// Full canonical decomposition. First parts nest at most 4 deep in Unicode; second parts never decompose again before their first is out.
static int marks_decompose(struct marks *m, uint32_t c, uint32_t begin, uint32_t end)
{
	uint32_t later[8], parts[2];
	unsigned n_later = 0;

	for (;;) {
		while (unicode_decompose(c, parts)) {
			c = parts[0];
			if (parts[1] && n_later < 8)
				later[n_later++] = parts[1];
		}
		if (marks_append(m, c, begin, end))
			return -ENOMEM;
		if (!n_later)
			return 0;
		c = later[--n_later];
	}
}

static int mark_compare(const void *a, const void *b)
{
	const struct mark *x = a, *y = b;

	if (x->class != y->class)
		return x->class < y->class ? -1 : 1;
	return x->order < y->order ? -1 : x->order > y->order;
}

// Sorts each run of marks (combining class not 0) by class, stably.
static void marks_sort(struct marks *m)
{
	for (size_t i = 0, first; i < m->n; i++) {
		bool sorted = true;

		if (!m->list[i].class)
			continue;
		for (first = i; i + 1 < m->n && m->list[i + 1].class; i++)
			sorted &= m->list[i].class <= m->list[i + 1].class;
		if (!sorted)
			qsort(m->list + first, i + 1 - first, sizeof(*m->list), mark_compare);
	}
}

// Canonical composition in place: a mark joins the last starter unless something of its class or higher stands between.
static void marks_compose(struct marks *m)
{
	size_t out = 0, starter = SIZE_MAX;
	int last_class = -1;    // of what was kept since the starter; -1 = nothing

	for (size_t i = 0; i < m->n; i++) {
		struct mark mark = m->list[i];
		uint32_t joined = 0;

		if (starter != SIZE_MAX && last_class < mark.class)
			joined = unicode_compose(m->list[starter].c, mark.c);
		if (joined) {
			struct mark *s = &m->list[starter];

			s->c = joined;
			s->begin = mark.begin < s->begin ? mark.begin : s->begin;
			s->end = mark.end > s->end ? mark.end : s->end;
			continue;
		}
		if (!mark.class)
			starter = out;
		last_class = mark.class ? mark.class : -1;
		m->list[out++] = mark;
	}
	m->n = out;
}

static int segment_normalize(struct source_text *t, struct marks *m, const struct source_text *in, size_t begin, size_t end)
{
	m->n = 0;
	for (size_t i = begin; i < end;) {
		unsigned n;
		uint32_t c = unicode_utf8_decode(in->bytes + i, &n);

		if (marks_decompose(m, c, source_text_begin(in, i), source_text_end(in, i + n - 1)))
			return -ENOMEM;
		i += n;
	}
	marks_sort(m);
	marks_compose(m);
	for (size_t i = 0; i < m->n; i++) {
		char bytes[4];
		unsigned n = unicode_utf8_encode(m->list[i].c, bytes);

		if (text_append(t, bytes, n, m->list[i].begin, m->list[i].end))
			return -ENOMEM;
	}
	return 0;
}

// The next character from `at` on that may change; *ret_start: the last stable one before it, where its segment begins.
static size_t unstable_find(const struct source_text *in, size_t at, size_t end, size_t *ret_start)
{
	*ret_start = at;
	for (size_t i = at; i < end;) {
		unsigned n;
		uint32_t c = unicode_utf8_decode(in->bytes + i, &n);

		if (unicode_is_unstable(c))
			return i;
		*ret_start = i;
		i += n;
	}
	*ret_start = end;
	return end;
}

static size_t segment_end(const struct source_text *in, size_t at, size_t end)
{
	while (at < end) {
		unsigned n;

		if (!unicode_is_unstable(unicode_utf8_decode(in->bytes + at, &n)))
			return at;
		at += n;
	}
	return end;
}

int source_text_nfc(struct source_text *t, const struct source_text *in, size_t begin, size_t end)
{
	struct marks marks = { 0 };
	size_t start, unstable = unstable_find(in, begin, end, &start);
	int ret = 0;

	memset(t, 0, sizeof(*t));
	if (unstable == end) {
		source_text_view(t, in, begin, end);
		return 0;
	}
	for (size_t at = begin; at < end && !ret; unstable = unstable_find(in, at, end, &start)) {
		ret = text_copy(t, in, at, start);
		at = segment_end(in, unstable, end);
		if (!ret && start < at)
			ret = segment_normalize(t, &marks, in, start, at);
	}
	free(marks.list);
	if (ret)
		source_text_done(t);
	return ret;
}

int source_text_spaces(struct source_text *t, const struct source_text *in, size_t begin, size_t end, struct space_normalizer how)
{
	int ret = 0;

	memset(t, 0, sizeof(*t));
	if (how.prepend && begin < end)
		ret = text_append(t, SPACE_MARK, SPACE_MARK_BYTES, source_text_begin(in, begin), source_text_begin(in, begin));
	for (size_t i = begin, run; i < end && !ret; i = run + 1) {
		const char *space = how.replace ? memchr(in->bytes + i, ' ', end - i) : NULL;

		run = space ? (size_t)(space - in->bytes) : end;
		ret = text_copy(t, in, i, run);
		if (!ret && space)
			ret = text_append(t, SPACE_MARK, SPACE_MARK_BYTES, source_text_begin(in, run), source_text_end(in, run));
	}
	if (ret)
		source_text_done(t);
	return ret;
}

// ---- BERT

static int mark_append_text(struct source_text *t, uint32_t c, uint32_t begin, uint32_t end)
{
	char bytes[4];

	return text_append(t, bytes, unicode_utf8_encode(c, bytes), begin, end);
}

// The ranges that BERT calls Chinese; its own slip (2B920 for 2B820) is kept, for it decides ids.
static bool is_ideograph(uint32_t c)
{
	return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
	       (c >= 0x2a700 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) || (c >= 0xf900 && c <= 0xfaff) ||
	       (c >= 0x2f800 && c <= 0x2fa1f);
}

// One character, cleaned and set apart.
static int clean_character(struct source_text *t, uint32_t c, uint32_t begin, uint32_t end, const struct bert_normalizer *how)
{
	bool apart = how->ideographs && is_ideograph(c);
	int ret = 0;

	if (how->clean && unicode_is_removed(c))
		return 0;
	if (how->clean && unicode_class(c) == UNICODE_SPACE)
		c = ' ';
	if (apart)
		ret = text_append(t, " ", 1, begin, end);
	if (!ret)
		ret = mark_append_text(t, c, begin, end);
	return ret || !apart ? ret : text_append(t, " ", 1, begin, end);
}

static int lower_append(struct source_text *t, const struct mark *mark, bool lower)
{
	uint32_t parts[2] = { mark->c };
	unsigned n = lower ? unicode_lower(mark->c, parts) : 1;
	int ret = 0;

	for (unsigned i = 0; i < n && !ret; i++)
		ret = mark_append_text(t, parts[i], mark->begin, mark->end);
	return ret;
}

// Canonical order, marks left out.
static int segment_strip(struct source_text *t, struct marks *m, const struct bert_normalizer *how)
{
	int ret = 0;

	if (how->strip_accents)
		marks_sort(m);
	for (size_t i = 0; i < m->n && !ret; i++)
		if (!how->strip_accents || !unicode_is_mark(m->list[i].c))
			ret = lower_append(t, &m->list[i], how->lower);
	m->n = 0;
	return ret;
}

int source_text_bert(struct source_text *t, const struct source_text *in, size_t begin, size_t end, const struct bert_normalizer *how)
{
	struct source_text clean = { 0 };
	struct marks marks = { 0 };
	unsigned n;
	int ret = 0;

	memset(t, 0, sizeof(*t));
	for (size_t i = begin; i < end && !ret; i += n) {
		uint32_t c = unicode_utf8_decode(in->bytes + i, &n);

		ret = clean_character(&clean, c, source_text_begin(in, i), source_text_end(in, i + n - 1), how);
	}
	for (size_t i = 0; i < clean.n && !ret; i += n) {
		uint32_t c = unicode_utf8_decode(clean.bytes + i, &n);

		if (!unicode_combining_class(c))      // a new segment: nothing moves across it
			ret = segment_strip(t, &marks, how);
		if (!ret)
			ret = how->strip_accents ? marks_decompose(&marks, c, clean.begin[i], clean.end[i + n - 1]) :
				marks_append(&marks, c, clean.begin[i], clean.end[i + n - 1]);
	}
	if (!ret)
		ret = segment_strip(t, &marks, how);
	source_text_done(&clean);
	free(marks.list);
	if (ret)
		source_text_done(t);
	return ret;
}
