// SPDX-License-Identifier: Apache-2.0
// Tokenizer: invalid UTF-8, offsets, special tokens, round trips, limits, files that must be refused, and linear time on a small stack.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "tests/unit/tokenizer_lines.h"

static struct tokenizer *open_variant(const char *name)
{
	json_t *base = golden_load("base.json"), *variants = golden_load("variants.json");
	json_t *whole = golden_variant(base, json_object_get(variants, name));
	struct tokenizer *t = golden_open(whole);

	json_decref(base);
	json_decref(variants);
	json_decref(whole);
	return t;
}

static struct tokens encode(const struct tokenizer *t, const char *text, size_t n, bool specials, bool add_special)
{
	struct tokens tokens = { 0 };
	struct error err = { 0 };

	if (tokenizer_encode(t, text, n, specials, add_special, SIZE_MAX, &tokens, &err))
		fail_msg("%s", err.message);
	return tokens;
}

static void decode_check(const struct tokenizer *t, const struct tokens *tokens, bool skip_special, const char *text, size_t n)
{
	char *back = NULL;
	size_t n_back;

	assert_int_equal(tokenizer_decode(t, tokens->ids, tokens->n, skip_special, &back, &n_back, NULL), 0);
	assert_int_equal(n_back, n);
	assert_memory_equal(back, text, n);
	free(back);
}

static void text_comes_back_and_offsets_tile_it(void **state)
{
	static const char text[] = "don't  stop\n\n12345 caf\xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97 \xf0\x9f\x98\x80<|im_end|> x\0y";
	static const char *const names[] = { "gpt2", "smollm", "llama3", "regex" };

	(void)state;
	for (size_t v = 0; v < 4; v++) {
		struct tokenizer *t = open_variant(names[v]);
		struct tokens tokens = encode(t, text, sizeof(text) - 1, true, false);
		uint32_t at = 0;

		for (size_t i = 0; i < tokens.n; i++) {
			const struct tokens one = { tokens.ids + i, NULL, 1, 1 };

			assert_int_equal(tokens.offsets[i].begin, at);
			at = tokens.offsets[i].end;
			decode_check(t, &one, false, text + tokens.offsets[i].begin, at - tokens.offsets[i].begin);
		}
		assert_int_equal(at, sizeof(text) - 1);
		decode_check(t, &tokens, false, text, sizeof(text) - 1);
		tokens_done(&tokens);
		tokenizer_close(t);
	}
}

// What Python's bytes.decode("utf-8", errors="replace") makes of them: R stands for U+FFFD.
static void invalid_utf8_is_replaced_as_python_does(void **state)
{
	static const struct { const char *bytes, *replaced; } cases[] = {
		{ "a\xff" "b", "aRb" }, { "\xc3", "R" }, { "\xc3(", "R(" }, { "\xe6\xbc", "R" }, { "\xe6\xbcz", "Rz" },
		{ "\xf0\x9f\x98", "R" }, { "\xf0\x9f\x98!", "R!" }, { "\xc0\xaf", "RR" }, { "\xe0\x80\xaf", "RRR" },
		{ "\xed\xa0\x80", "RRR" }, { "\xf4\x90\x80\x80", "RRRR" }, { "\xf5\x80", "RR" }, { "\x80\x80", "RR" },
		{ "\xf0\x80\x80", "RRR" }, { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "RRRRA" },
	};
	struct tokenizer *t = open_variant("gpt2");

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct tokens tokens = encode(t, cases[i].bytes, strlen(cases[i].bytes), true, false);
		char text[64];
		size_t n = 0;

		for (const char *p = cases[i].replaced; *p; p++) {
			memcpy(text + n, *p == 'R' ? "\xef\xbf\xbd" : p, *p == 'R' ? 3 : 1);
			n += *p == 'R' ? 3 : 1;
		}
		decode_check(t, &tokens, false, text, n);
		assert_int_equal(tokens.offsets[0].begin, 0);
		assert_int_equal(tokens.offsets[tokens.n - 1].end, strlen(cases[i].bytes));
		tokens_done(&tokens);
	}
	tokenizer_close(t);
}

static void composed_characters_refer_to_all_their_bytes(void **state)
{
	struct tokenizer *t = open_variant("qwen2");
	struct tokens tokens = encode(t, "xe\xcc\x81y", 5, true, false);

	(void)state;
	decode_check(t, &tokens, false, "x\xc3\xa9y", 4);
	for (size_t i = 0; i < tokens.n; i++)
		assert_true(tokens.offsets[i].begin <= 1 || tokens.offsets[i].begin == 4);
	assert_int_equal(tokens.offsets[tokens.n - 1].end, 5);
	tokens_done(&tokens);
	tokenizer_close(t);
}

static void special_tokens_are_text_on_demand(void **state)
{
	struct tokenizer *t = open_variant("llama3");
	struct tokens yes = encode(t, "<|im_end|>", 10, true, true), no = encode(t, "<|im_end|>", 10, false, false);

	(void)state;
	assert_int_equal(yes.n, 2);    // the template's token, then this one
	assert_int_equal(yes.ids[0], 0);
	assert_int_equal(yes.ids[1], 2);
	assert_int_equal(yes.offsets[1].end, 10);
	assert_true(no.n > 1);
	decode_check(t, &no, true, "<|im_end|>", 10);
	decode_check(t, &yes, true, "", 0);
	assert_int_equal(tokenizer_bos(t), 0);
	tokens_done(&yes);
	tokens_done(&no);
	tokenizer_close(t);
}

static void ends_are_read_from_a_config_where_the_file_names_none(void **state)
{
	static const struct { const char *variant, *config; int32_t bos, eos; } cases[] = {
		{ "gpt2", "{\"eos_token\":\"<|im_end|>\"}", -1, 2 },
		{ "gpt2", "{\"bos_token\":{\"content\":\"<|im_end|>\",\"lstrip\":false},\"eos_token\":null,\"a\":[[1]]}", 2, -1 },
		{ "gpt2", "{\"eos_token\":\"no such token\",\"bos_token\":7}", -1, -1 },
		{ "gpt2", "{\"eos_token\":{\"content\":[]},\"bos_token\":{}}", -1, -1 },
		{ "gpt2", "[]", -1, -1 },
		{ "llama3", "{\"bos_token\":\"<|im_end|>\",\"eos_token\":\"<|im_end|>\"}", 0, 2 } };        // its template names the first

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct tokenizer *t = open_variant(cases[i].variant);
		struct error err = { 0 };

		assert_int_equal(tokenizer_eos(t), -1);
		assert_int_equal(tokenizer_read_ends(t, "{\"eos_token\":", 13, &err), -EINVAL);
		assert_string_equal(err.field, "tokenizer_config.json");
		assert_int_equal(tokenizer_read_ends(t, cases[i].config, strlen(cases[i].config), &err), 0);
		if (tokenizer_bos(t) != cases[i].bos || tokenizer_eos(t) != cases[i].eos)
			fail_msg("%s: %d, %d", cases[i].config, tokenizer_bos(t), tokenizer_eos(t));
		tokenizer_close(t);
	}
}

static void limits_are_errors(void **state)
{
	struct tokenizer *t = open_variant("gpt2");
	struct tokens tokens = { 0 };
	struct error err = { 0 };
	char *text = NULL;
	size_t n;

	(void)state;
	assert_int_equal(tokenizer_encode(t, "1!2!3", 5, true, false, 5, &tokens, &err), 0);
	assert_int_not_equal(tokenizer_encode(t, "1!2!3", 5, true, false, 4, &tokens, &err), 0);
	assert_int_equal(err.code, ERROR_TOO_LARGE);
	assert_int_equal(tokenizer_encode(t, "", 0, true, false, 0, &tokens, &err), 0);
	assert_int_equal(tokens.n, 0);
	assert_int_not_equal(tokenizer_decode(t, (const uint32_t[]){ 5, 1u << 30 }, 2, false, &text, &n, &err), 0);
	assert_string_equal(err.field, "tokens[1]");
	tokens_done(&tokens);
	tokenizer_close(t);
}

// A whole tokenizer in one line, with one member replaced; the error's message must hold `reason`.
static void refuse_check(const char *member, const char *value, const char *reason)
{
	static const char whole[] = "{\"added_tokens\":[],\"normalizer\":null,\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
		"\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
		"\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}";
	json_t *root = json_loads(whole, 0, NULL);
	struct tokenizer *t = NULL;
	struct error err = { 0 };
	char *text;

	assert_non_null(root);
	if (value)
		assert_int_equal(json_object_set_new(root, member, json_loads(value, JSON_DECODE_ANY, NULL)), 0);
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

static void bad_files_are_refused_with_the_reason(void **state)
{
	static const struct { const char *member, *value, *reason; } cases[] = {
		{ "model", "{\"type\":\"WordPiece\",\"vocab\":{}}",
			"WordPiece with a normalizer other than BertNormalizer is not supported" },
		{ "post_processor", "{\"type\":\"BertProcessing\",\"sep\":[\"x\",-1]}", "an id is not a whole number" },
		{ "model", "{\"type\":\"Unigram\",\"vocab\":[]}", "model type Unigram is not supported" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}", "empty" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}", "given twice" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":16777216},\"merges\":[]}", "over the limit" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":9000000},\"merges\":[]}", "absurd" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}", "whole number" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":1.5},\"merges\":[]}", "whole number" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a z\"]}", "not in the vocabulary" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}", "not in the vocabulary" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}", "two tokens" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[7]}", "neither" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"byte_fallback\":true}",
			"pre_tokenizer type ByteLevel of this kind" },
		{ "model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"a\"}", "unk_token" },
		{ "normalizer", "{\"type\":\"Lowercase\"}", "normalizer type Lowercase is not supported" },
		{ "pre_tokenizer", "{\"type\":\"Metaspace\"}", "pre_tokenizer type Metaspace" },
		{ "pre_tokenizer", "null", "without pre_tokenizer" },
		{ "pre_tokenizer", "{\"type\":\"ByteLevel\"}", "add_prefix_space" },
		{ "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":\"Isolated\","
		  "\"pattern\":{\"Regex\":\"a(\"}},{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}", "does not compile" },
		{ "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":\"Removed\","
		  "\"pattern\":{\"Regex\":\"a\"}},{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}", "Split behavior Removed" },
		{ "post_processor", "{\"type\":\"RobertaProcessing\"}", "post_processor type RobertaProcessing" },
		{ "post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}},"
		  "{\"Sequence\":{\"id\":\"A\"}}],"
		  "\"special_tokens\":{\"s\":{\"ids\":[77]}}}", "id 77 is not in the vocabulary" },
		{ "decoder", "{\"type\":\"WordPiece\"}", "decoder type WordPiece" },
		{ "added_tokens", "[{\"id\":3,\"content\":\"x\"},{\"id\":3,\"content\":\"y\"}]", "given twice" },
		{ "added_tokens", "[{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\"}]", "same text" },
		{ "added_tokens", "[{\"id\":1,\"content\":\"a\"}]", "another id" },
		{ "added_tokens", "[{\"id\":3,\"content\":\"\"}]", "0 bytes" },
		{ "surprise", "1", "surprise" },
	};

	(void)state;
	refuse_check("model", NULL, NULL);    // the whole itself is right
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		refuse_check(cases[i].member, cases[i].value, cases[i].reason);
}

static void what_is_not_json_is_refused(void **state)
{
	static const char twice[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}";
	struct tokenizer *t = NULL;
	struct error err = { 0 };
	static char deep[100000];

	(void)state;
	memset(deep, '[', sizeof(deep));
	assert_int_not_equal(tokenizer_open_json(deep, sizeof(deep), &t, &err), 0);
	assert_non_null(strstr(err.message, "depth"));
	assert_int_not_equal(tokenizer_open_json("", 0, &t, &err), 0);
	assert_int_not_equal(tokenizer_open_json("[]", 2, &t, &err), 0);
	assert_int_not_equal(tokenizer_open_json(twice, strlen(twice), &t, &err), 0);
	assert_non_null(strstr(err.message, "duplicate"));
}

#define MIB (1u << 20)
#define SMALL_STACK (256 * 1024)
#define MAX_SECONDS 1.0    // for 1 MiB; what is asked of the tokenizer
#define MAX_GROWTH 24.0    // from 128 KiB to 1 MiB: n log n gives 9.5, 12 when other programs hold the cache; n squared gives 64

#ifdef __has_feature
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif
#define SLOW (SANITIZED || getenv("KDSERVED_TEST_PATIENCE"))    // memcheck, too

struct timing { const struct tokenizer *t; const char *text; size_t n; int ret; double seconds; };

// Processor time of the calling thread: other work on the machine does not count.
static double thread_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *encode_timed(void *arg)
{
	struct timing *timing = arg;

	for (int i = 0; i < (timing->n < MIB / 4 ? 3 : 1); i++) {    // the short one: the best of three
		struct tokens tokens = { 0 };
		double start = thread_seconds(), took;

		timing->ret |= tokenizer_encode(timing->t, timing->text, timing->n, true, false, SIZE_MAX, &tokens, NULL);
		took = thread_seconds() - start;
		if (i == 0 || took < timing->seconds)
			timing->seconds = took;
		tokens_done(&tokens);
	}
	return NULL;
}

static double encode_on_small_stack(const struct tokenizer *t, const char *text, size_t n)
{
	struct timing timing = { .t = t, .text = text, .n = n };
	pthread_attr_t attr;
	pthread_t thread;

	assert_int_equal(pthread_attr_init(&attr), 0);
	assert_int_equal(pthread_attr_setstacksize(&attr, SMALL_STACK), 0);
	assert_int_equal(pthread_create(&thread, &attr, encode_timed, &timing), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	pthread_attr_destroy(&attr);
	assert_int_equal(timing.ret, 0);
	return timing.seconds;
}

// Up to three tries: another program on the same cache can spoil one.
static void linear_check(const struct tokenizer *t, const char *name, const char *text, size_t n)
{
	double eighth = 0, whole = 0;

	n = SLOW ? n / 8 : n;    // sanitizers are slow: there the small stack is what is tested

	for (int tries = 0; tries < 3; tries++) {
		eighth = encode_on_small_stack(t, text, n / 8);
		whole = encode_on_small_stack(t, text, n);
		if (getenv("VERBOSE"))
			print_message("%s \"%.4s\": %.1f ms for an eighth, %.1f ms for 1 MiB\n", name, text, 1e3 * eighth, 1e3 * whole);
		// Times of a few ms are noise of the clock and of page faults.
		if (SLOW || (whole <= MAX_SECONDS && whole <= MAX_GROWTH * eighth + 0.01))
			return;
	}
	fail_msg("%s: 1 MiB of \"%.4s\" took %.3f s, an eighth of it %.3f s", name, text, whole, eighth);
}

static void a_mebibyte_of_one_character_takes_linear_time_and_little_stack(void **state)
{
	static const char *const names[] = { "smollm", "qwen2", "o200k", "regex" };    // each matcher, NFC, PCRE2
	static const char *const repeated[] = {
		"a", "A", "A'", " ", "\n", "\r\n", " \n", "1", "\xe6\xbc\xa2", "\xf0\x9f\x98\x80", "\xcc\x81", "'",
		"!", "<", "\xff", "mask", "a\xcc\xa7\xcc\x81", "\xcc\x81\xcc\xa7", "<|im_", " a" };
	char *text = malloc(MIB);

	(void)state;
	assert_non_null(text);
	for (size_t v = 0; v < sizeof(names) / sizeof(names[0]); v++) {
		struct tokenizer *t = open_variant(names[v]);

		for (size_t r = 0; r < sizeof(repeated) / sizeof(repeated[0]); r++) {
			size_t n = strlen(repeated[r]);

			for (size_t i = 0; i < MIB; i++)
				text[i] = repeated[r][i % n];
			linear_check(t, names[v], text, text[0] == '\xff' ? MIB / 3 : MIB);    // U+FFFD has three bytes
		}
		tokenizer_close(t);
	}
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_comes_back_and_offsets_tile_it), cmocka_unit_test(invalid_utf8_is_replaced_as_python_does),
		cmocka_unit_test(composed_characters_refer_to_all_their_bytes), cmocka_unit_test(special_tokens_are_text_on_demand),
		cmocka_unit_test(ends_are_read_from_a_config_where_the_file_names_none),
		cmocka_unit_test(limits_are_errors), cmocka_unit_test(bad_files_are_refused_with_the_reason),
		cmocka_unit_test(what_is_not_json_is_refused),
		cmocka_unit_test(a_mebibyte_of_one_character_takes_linear_time_and_little_stack),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
