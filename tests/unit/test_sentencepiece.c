// SPDX-License-Identifier: Apache-2.0
// 10,000 lines of mixed text give the ids that Hugging Face `tokenizers` gives for the layouts of Llama 2, Mistral, Mixtral and Gemma, and
// those that SentencePiece gives for its vocabularies in GGUF. And what is particular to them: spaces that are no text, bytes,
// parts of texts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "tests/unit/tokenizer_lines.h"

#define EXPECTED "spaces_expected.json"
#define MARK "\xe2\x96\x81"

static const char *const variants[] = {
	"llama", "mistral", "mistral-words", "mixtral", "first-split", "gemma", "always", "never", "no-unknown" };
static const char *const vocabularies[] = { "spm-prefix", "spm-plain", "spm-unknown" };
#define N_VARIANTS 9
#define N_ALL 12

static struct tokenizer *open_variant(const char *name)
{
	json_t *all = golden_load("spaces.json"), *whole = golden_variant(json_object_get(all, "base"), json_object_get(all, name));
	struct tokenizer *t = golden_open(whole);

	json_decref(all);
	json_decref(whole);
	return t;
}

static struct tokenizer *open_any(int i)
{
	const char *top = getenv("top_srcdir");
	struct tokenizer *t = NULL;
	struct error err = { 0 };
	char path[4096];

	if (i < N_VARIANTS)
		return open_variant(variants[i]);
	snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/%s.gguf", top ? top : ".", vocabularies[i - N_VARIANTS]);
	if (tokenizer_open_path(path, &t, &err))
		fail_msg("%s: %s: %s", path, err.field, err.message);
	return t;
}

static const char *name_of(int i)
{
	return i < N_VARIANTS ? variants[i] : vocabularies[i - N_VARIANTS];
}

static struct tokenizer *reopen(const struct tokenizer *t)
{
	struct tokenizer *again = NULL;
	struct error err = { 0 };
	char *json = NULL;
	size_t n;

	assert_int_equal(tokenizer_to_json(t, &json, &n, NULL), 0);
	if (tokenizer_open_json(json, n, &again, &err))
		fail_msg("%s: %s", err.field, err.message);
	free(json);
	return again;
}

static void lines_are_the_references(void **state)
{
	(void)state;
	for (int i = 0; i < N_ALL; i++) {
		struct tokenizer *t = open_any(i);

		golden_compare_in(t, EXPECTED, name_of(i));
		tokenizer_close(t);
	}
}

// Also of scores, for which the format has no place of its own.
static void what_is_written_is_the_same_tokenizer(void **state)
{
	(void)state;
	for (int i = 0; i < N_ALL; i++) {
		struct tokenizer *t = open_any(i), *again = reopen(t);
		struct content_id id = tokenizer_id(t), id_again = tokenizer_id(again);

		if (memcmp(&id, &id_again, sizeof(id)))
			fail_msg("%s: another id", name_of(i));
		if (i >= N_VARIANTS - 1)      // of those that come from merges the id says all
			golden_compare_in(again, EXPECTED, name_of(i));
		tokenizer_close(again);
		tokenizer_close(t);
	}
}

static void each_has_an_id_of_its_own(void **state)
{
	struct content_id ids[N_ALL];

	(void)state;
	for (int i = 0; i < N_ALL; i++) {
		struct tokenizer *t = open_any(i);

		ids[i] = tokenizer_id(t);
		tokenizer_close(t);
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(&ids[i], &ids[j], sizeof(ids[i]));
	}
}

static size_t numbers_of(const json_t *list, uint32_t *ret)
{
	const json_t *item;
	size_t i;

	assert_in_range(json_array_size(list), 0, 4096);
	json_array_foreach((json_t *)list, i, item)
		ret[i] = (uint32_t)json_integer_value(item);
	return json_array_size(list);
}

static void ids_decode_as_the_references_do(void **state)
{
	json_t *expected = golden_load(EXPECTED), *ids;
	size_t i, n;

	(void)state;
	for (int k = 0; k < N_ALL; k++) {
		const json_t *own = json_object_get(expected, name_of(k)), *texts = json_object_get(own, "decoded");
		json_t *lines = json_object_get(own, "full");
		struct tokenizer *t = open_any(k);

		// The unknown token's text is SentencePiece's own invention (U+2047): ours is its spelling.
		assert_true(json_array_size(lines) > 10 && json_array_size(texts) == json_array_size(lines));
		json_array_foreach(lines, i, ids) {
			uint32_t numbers[4096];
			const json_t *want = json_array_get(texts, i);
			bool skip = k < N_VARIANTS ? i % 2 == 0 && k != 0 : true;
			char *text = NULL;
			size_t n_ids = numbers_of(ids, numbers);

			if (!strcmp(name_of(k), "spm-unknown") && strstr(json_string_value(want), "\xe2\x81\x87"))
				continue;
			assert_int_equal(tokenizer_decode(t, numbers, n_ids, skip, &text, &n, NULL), 0);
			if (n != json_string_length(want) || memcmp(text, json_string_value(want), n))
				fail_msg("%s: line %zu: \"%s\", not \"%s\"", name_of(k), i, text, json_string_value(want));
			free(text);
		}
		tokenizer_close(t);
	}
	json_decref(expected);
}

static struct tokens encode(const struct tokenizer *t, const char *text, size_t n, bool part)
{
	struct tokens tokens = { 0 };
	struct error err = { 0 };

	if (part ? tokenizer_encode_part(t, text, n, true, SIZE_MAX, &tokens, &err) :
		   tokenizer_encode(t, text, n, true, false, SIZE_MAX, &tokens, &err))
		fail_msg("%s", err.message);
	return tokens;
}

static void text_check(const struct tokenizer *t, const uint32_t *ids, size_t n_ids, bool part, const char *text, size_t n)
{
	char *back = NULL;
	size_t n_back;

	assert_int_equal((part ? tokenizer_decode_part : tokenizer_decode)(t, ids, n_ids, false, &back, &n_back, NULL), 0);
	assert_int_equal(n_back, n);
	assert_memory_equal(back, text, n);
	free(back);
}

// Each token stands for the bytes that its offsets name, but for the space that is put first.
static void text_comes_back_and_offsets_tile_it(void **state)
{
	static const char text[] = "don't  stop\n\n12345 caf\xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97 \xf0\x9f\x98\x80\xf0\xa0\xae\xb7 x\0y";
	static const int all[] = { 0, 1, 2, 3, 4, 5, 9, 10 };

	(void)state;
	for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
		struct tokenizer *t = open_any(all[k]);
		struct tokens tokens = encode(t, text, sizeof(text) - 1, false);
		uint32_t at = 0;

		for (size_t i = 0; i < tokens.n; i++) {
			size_t n = 0;
			const char *bytes = tokenizer_bytes(t, tokens.ids[i], &n, NULL);
			size_t put = i == 0 && tokenizer_puts_space(t, true);

			assert_int_equal(tokens.offsets[i].begin, at);
			at = tokens.offsets[i].end;
			assert_int_equal(at - tokens.offsets[i].begin, n - put);
			assert_memory_equal(bytes + put, text + at - (n - put), n - put);
			if (put)
				assert_int_equal(bytes[0], ' ');
		}
		assert_int_equal(at, sizeof(text) - 1);
		text_check(t, tokens.ids, tokens.n, false, text, sizeof(text) - 1);
		tokens_done(&tokens);
		tokenizer_close(t);
	}
}

// A text in two pieces is the text: what the second gives has no space before it, and decodes with its own.
static void parts_of_a_text_go_on_from_each_other(void **state)
{
	(void)state;
	for (int k = 0; k < N_ALL; k++) {
		struct tokenizer *t = open_any(k);
		struct tokens first = encode(t, "the cat", 7, false), second = encode(t, " and the", 8, true),
			third = encode(t, "dog", 3, true);
		struct tokens whole = encode(t, "dog", 3, false);
		char *a = NULL, *b = NULL;
		size_t n;

		text_check(t, second.ids, second.n, true, " and the", 8);
		text_check(t, third.ids, third.n, true, "dog", 3);
		assert_int_equal(third.offsets[0].begin, 0);
		assert_true(third.offsets[0].end > 0);
		if (tokenizer_puts_space(t, true))
			assert_true(third.n != whole.n || memcmp(third.ids, whole.ids, 4 * whole.n));
		else
			assert_memory_equal(third.ids, whole.ids, 4 * whole.n);
		// every way to cut the ids gives the whole text
		for (size_t i = 1; i < first.n; i++) {
			char joined[64];
			size_t n_a, n_b;

			assert_int_equal(tokenizer_decode(t, first.ids, i, false, &a, &n_a, NULL), 0);
			assert_int_equal(tokenizer_decode_part(t, first.ids + i, first.n - i, false, &b, &n_b, NULL), 0);
			assert_in_range(n_a + n_b, 7, 63);
			memcpy(joined, a, n_a);
			memcpy(joined + n_a, b, n_b);
			assert_memory_equal(joined, "the cat", 7);
			n = n_a + n_b;
			assert_int_equal(n, 7);
			free(a);
			free(b);
		}
		tokens_done(&first);
		tokens_done(&second);
		tokens_done(&third);
		tokens_done(&whole);
		tokenizer_close(t);
	}
}

static void bytes_of_characters_without_a_token_are_tokens(void **state)
{
	static const char text[] = "\xf0\x9d\x84\x9e";      // U+1D11E
	struct tokenizer *t = open_variant("gemma");
	struct tokens tokens = encode(t, text, 4, false), bad = encode(t, "\xff", 1, false);

	(void)state;
	assert_int_equal(tokens.n, 4);
	for (size_t i = 0; i < 4; i++) {
		size_t n = 0;
		const char *bytes = tokenizer_bytes(t, tokens.ids[i], &n, NULL);

		assert_int_equal(n, 1);
		assert_int_equal(bytes[0], text[i]);
		assert_int_equal(tokens.offsets[i].begin, i);
		assert_true(tokenizer_is_fallback(t, tokens.ids[i]));
		text_check(t, tokens.ids + i, 1, true, text + i, 1);
	}
	// invalid UTF-8 is U+FFFD, as in the other tokenizers; its tokens all stand for the byte
	text_check(t, bad.ids, bad.n, false, "\xef\xbf\xbd", 3);
	assert_int_equal(bad.offsets[0].begin, 0);
	assert_int_equal(bad.offsets[bad.n - 1].end, 1);
	tokens_done(&tokens);
	tokens_done(&bad);
	tokenizer_close(t);
}

static void stretches_after_special_tokens_are_as_the_kind_has_it(void **state)
{
	static const struct { const char *name; bool space; } cases[] = {
		{ "mistral-words", true }, { "mixtral", false }, { "gemma", false } };

	(void)state;
	for (int k = 0; k < 3; k++) {
		struct tokenizer *t = open_variant(cases[k].name);
		struct tokens tokens = encode(t, "</s>the", 7, false);
		size_t n;

		assert_int_equal(tokens.ids[0], 2);
		assert_int_equal(tokenizer_bytes(t, tokens.ids[1], &n, NULL)[0], cases[k].space ? ' ' : 't');
		assert_int_equal(tokenizer_puts_space(t, false), cases[k].space);
		tokens_done(&tokens);
		tokenizer_close(t);
	}
}

// A small whole tokenizer with one member replaced; the error's message must hold `reason`.
static void refuse_check(const char *member, const char *value, const char *reason)
{
	static const char whole[] = "{\"added_tokens\":[],\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
		"\"content\":\"" MARK "\"},"
		"\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" MARK "\"},"
		"\"content\":\" \"},"
		"{\"type\":\"Fuse\"}]},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}";
	json_t *root = json_loads(whole, 0, NULL), *changed = json_loads(value, JSON_DECODE_ANY, NULL);
	struct tokenizer *t = NULL;
	struct error err = { 0 };
	char *text;

	assert_true(root && changed);
	assert_int_equal(json_object_set_new(root, member, changed), 0);
	text = json_dumps(root, 0);
	int ret = tokenizer_open_json(text, strlen(text), &t, &err);

	if (!reason && ret)
		fail_msg("%s: %s", err.field, err.message);
	if (reason && (!ret || !strstr(err.message, reason)))
		fail_msg("%s = %s: \"%s\" does not say \"%s\"", member, value, err.message, reason);
	tokenizer_close(t);
	free(text);
	json_decref(root);
}

#define JOIN "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" MARK "\"},\"content\":\" \"}"
#define MODEL "\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[]"

static void bad_files_are_refused_with_the_reason(void **state)
{
	static const struct { const char *member, *value, *reason; } cases[] = {
		{ "version", "\"1.0\"", NULL },      // the whole itself is right
		{ "model", "{" MODEL ",\"byte_fallback\":true}", "byte_fallback without a token for byte 0" },
		{ "model", "{" MODEL ",\"unk_token\":\"<unk>\"}", "unk_token is not in the vocabulary" },
		{ "model", "{" MODEL ",\"dropout\":0.1}", "model with dropout" },
		{ "model", "{" MODEL ",\"fuse_unk\":1}", "not a boolean" },
		{ "model", "{" MODEL ",\"kdserved_ranks\":[0]}", "1 ranks for 3 ids" },
		{ "model", "{" MODEL ",\"kdserved_ranks\":[0,-1,2]}", "out of range" },
		{ "model", "{" MODEL ",\"kdserved_ranks\":[0,\"x\",2]}", "no number" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a z\"]}", "not in the vocabulary" },
		{ "normalizer", "{\"type\":\"NFKC\"}", "normalizer type NFKC" },
		{ "normalizer", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" \"},\"content\":\"" MARK "\"}",
			"normalizer type Replace" },
		{ "normalizer", "{\"type\":\"Prepend\",\"prepend\":\"_\"}", "normalizer type Prepend" },
		{ "pre_tokenizer", "{\"type\":\"Whitespace\"}", "pre_tokenizer type Whitespace" },
		{ "pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\"}", "replacement other than" },
		{ "pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\",\"prepend_scheme\":\"last\"}",
			"prepend_scheme last" },
		{ "pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\",\"add_prefix_space\":false}",
			"add_prefix_space false" },
		{ "decoder", "{\"type\":\"Sequence\",\"decoders\":[" JOIN "]}", "without Fuse" },
		{ "decoder", "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}",
			"does not begin by" },
		{ "decoder", "{\"type\":\"Sequence\",\"decoders\":[" JOIN ",{\"type\":\"Fuse\"},"
		  "{\"type\":\"Strip\",\"content\":\" \",\"start\":2,\"stop\":0}]}",
		  "Strip other than" },
		{ "decoder", "{\"type\":\"Sequence\",\"decoders\":[" JOIN ",{\"type\":\"Fuse\"},{\"type\":\"CTC\"}]}", "more after Fuse" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		refuse_check(cases[i].member, cases[i].value, cases[i].reason);
}

#define MIB (1u << 20)
#ifdef __has_feature
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif
#define SLOW (SANITIZED || getenv("KDSERVED_TEST_PATIENCE"))    // memcheck, too

struct timing { const struct tokenizer *t; const char *text; size_t n; int ret; double seconds; };

static void *encode_timed(void *arg)
{
	struct timing *timing = arg;
	struct timespec from, to;
	struct tokens tokens = { 0 };

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
	timing->ret = tokenizer_encode(timing->t, timing->text, timing->n, true, false, SIZE_MAX, &tokens, NULL);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
	timing->seconds = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
	tokens_done(&tokens);
	return NULL;
}

static double seconds_on_small_stack(const struct tokenizer *t, const char *text, size_t n)
{
	struct timing timing = { .t = t, .text = text, .n = n };
	pthread_attr_t attr;
	pthread_t thread;

	assert_int_equal(pthread_attr_init(&attr), 0);
	assert_int_equal(pthread_attr_setstacksize(&attr, 256 * 1024), 0);
	assert_int_equal(pthread_create(&thread, &attr, encode_timed, &timing), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	pthread_attr_destroy(&attr);
	assert_int_equal(timing.ret, 0);
	return timing.seconds;
}

static void a_mebibyte_of_one_character_takes_little_time_and_stack(void **state)
{
	static const int all[] = { 1, 4, 5, 9, 10 };
	static const char *const repeated[] = { "a", " ", "\n", "\xe6\xbc\xa2", "\xf0\x9f\x98\x80", "\xff", MARK, "mask", "the ", "<s>" };
	char *text = malloc(MIB);

	(void)state;
	assert_non_null(text);
	for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
		struct tokenizer *t = open_any(all[k]);

		for (size_t r = 0; r < sizeof(repeated) / sizeof(repeated[0]); r++) {
			size_t n = strlen(repeated[r]);
			double best = 1e9;
			size_t whole = SLOW ? MIB / 16 : MIB;      // there the small stack is what is tested

			for (size_t i = 0; i < MIB; i++)
				text[i] = repeated[r][i % n];
			for (int tries = 0; tries < 3 && best > 1.0; tries++) {
				double seconds = seconds_on_small_stack(t, text, text[0] == '\xff' ? whole / 3 : whole);

				best = seconds < best ? seconds : best;
			}
			if (getenv("VERBOSE"))
				print_message("%s \"%s\": %.0f ms\n", name_of(all[k]), repeated[r], 1e3 * best);
			if (!SLOW && best > 1.0)
				fail_msg("%s: 1 MiB of \"%s\" took %.2f s", name_of(all[k]), repeated[r], best);
		}
		tokenizer_close(t);
	}
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines_are_the_references), cmocka_unit_test(what_is_written_is_the_same_tokenizer),
		cmocka_unit_test(each_has_an_id_of_its_own), cmocka_unit_test(ids_decode_as_the_references_do),
		cmocka_unit_test(text_comes_back_and_offsets_tile_it), cmocka_unit_test(parts_of_a_text_go_on_from_each_other),
		cmocka_unit_test(bytes_of_characters_without_a_token_are_tokens),
		cmocka_unit_test(stretches_after_special_tokens_are_as_the_kind_has_it),
		cmocka_unit_test(bad_files_are_refused_with_the_reason),
		cmocka_unit_test(a_mebibyte_of_one_character_takes_little_time_and_stack),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
