// SPDX-License-Identifier: Apache-2.0
// Bodies of requests: every rejection names its field. (Texts need a tokenizer: tests/e2e.)
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/buffer.h"
#include "daemon/server/json.h"
#include "daemon/teacher/request.h"

static const struct json_limits limits = {.max_tokens = 16, .max_sequences = 3};

static int read_score(const char *body, struct json_score *ret, struct error *err)
{
	return json_read_score(body, strlen(body), NULL, &limits, ret, err);
}

static void a_whole_request_is_read(void **state)
{
	(void)state;
	struct json_score s;
	struct error err = {0};
	assert_int_equal(read_score("{\"sequences\":[{\"tokens\":[1,2,3]},{\"tokens\":[7]}],\"top_k\":64,\"temperatures\":[1,2.5],\"own\":"
				    "true,\"entropy\":true,"
				    "\"first\":-3,\"last\":2,\"encoding\":\"base64\",\"values\":\"f16\",\"durable\":true,\"store\":false,"
				    "\"deadline_ms\":5}",
				    &s, &err),
			 0);
	const struct request *r = s.request;
	assert_int_equal(r->n_items, 2);
	assert_int_equal(r->items[0].sequence.n_tokens, 3);
	assert_int_equal(r->items[0].sequence.tokens[2], 3);
	assert_int_equal(r->query.top_k, 64);
	assert_int_equal(r->query.n_temperatures, 2);
	assert_true(r->query.temperatures[1] == 2.5f);
	assert_true(r->query.own && r->query.entropy && r->durable && r->no_store && s.base64 && r->deadline_ms);
	assert_int_equal(r->query.first, -3);
	assert_int_equal(r->query.last, 2);
	assert_int_equal(r->query.values, QUERY_VALUES_F16);
	json_score_done(&s);
}

static void what_is_left_out_has_its_default(void **state)
{
	(void)state;
	struct json_score s;
	assert_int_equal(read_score("{\"sequences\":[{\"tokens\":[1]}]}", &s, NULL), 0);
	const struct request *r = s.request;
	assert_false(r->query.own || r->query.entropy || r->durable || r->no_store || s.base64 || r->deadline_ms || r->query.top_k ||
		     r->query.n_temperatures);
	assert_int_equal(r->query.last, -1);
	json_score_done(&s);
}

static void the_whole_question_is_read(void **state)
{
	(void)state;
	struct json_score s;
	struct error err = {0};
	static const char body[] =
		"{\"sequences\":[{\"tokens\":[1,2,3],\"first\":1},{\"tokens\":[7,8],\"last\":0}],"
		"\"top_k\":4,\"top_mass\":0.5,\"dense\":true,"
		"\"max_prob\":true,\"argmax\":true,\"sum_squares\":true,\"tail\":true,"
		"\"draws\":{\"n\":5,\"tau\":0.5,\"seed\":9,\"tail\":true},"
		"\"keep\":[4,2],\"features\":[{\"kind\":\"hidden\",\"layer\":3},{\"kind\":\"v\"}],\"pooling\":\"last\","
		"\"feature_values\":\"bf16\",\"values\":\"u8\",\"gather\":[[[1,2],[3]],[5]],\"spans\":[[[1,3],[2,3]],[]]}";
	if (read_score(body, &s, &err))
		fail_msg("%s: %s", err.field, err.message);
	const struct query *q = &s.request->query;
	const struct request_item *items = s.request->items;
	assert_true(q->dense && q->max_prob && q->argmax && q->sum_squares && q->tail && q->top_mass == 0.5f);
	assert_true(q->draws.n == 5 && q->draws.tau == 0.5f && q->draws.seed == 9 && q->draws.tail);
	assert_true(q->n_keep == 2 && q->keep[0] == 4 && q->keep[1] == 2);
	assert_true(q->n_features == 2 && q->features[0].kind == QUERY_FEATURE_HIDDEN && q->features[0].layer == 3);
	assert_true(q->features[1].kind == QUERY_FEATURE_V && q->features[1].layer == 0);
	assert_true(q->pooling == QUERY_POOLING_LAST && q->feature_values == QUERY_FEATURE_BF16 && q->values == QUERY_VALUES_U8);
	assert_true(items[0].part.has_rows && items[0].part.first == 1 && items[0].part.last == -1);
	assert_true(items[1].part.has_rows && items[1].part.first == 0 && items[1].part.last == 0);
	assert_true(items[0].part.gather.n_lists == 2 && items[0].part.gather.offsets[1] == 2 && items[0].part.gather.ids[2] == 3);
	assert_true(items[1].part.gather.n_lists == 1 && items[1].part.gather.offsets[1] == 1 && items[1].part.gather.ids[0] == 5);
	assert_true(items[0].part.n_spans == 2 && items[0].part.spans[1].begin == 2 && items[0].part.spans[1].end == 3);
	assert_int_equal(items[1].part.n_spans, 0);
	json_score_done(&s);
}

#define WITH(more) "{\"sequences\":[{\"tokens\":[1]}]," more "}"
#define OF(sequence) "{\"sequences\":[" sequence "]}"

static const struct {
	const char *body, *field;
} rejections[] = {
	{"", "body"},
	{"nonsense", "body"},
	{"[1]", "body"},
	{"{\"sequences\":[{\"tokens\":[1]}]} x", "body"},
	{WITH("\"top_k\":1,\"top_k\":1"), "body"},
	{"{\"\\u0000\":1}", "body"},
	{"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "body"},
	{"{}", "sequences"},
	{OF(""), "sequences"},
	{"{\"sequences\":1}", "sequences"},
	{OF("{\"tokens\":[1]},{\"tokens\":[1]},{\"tokens\":[1]},{\"tokens\":[1]}"), "sequences"},
	{OF("1"), "sequences[0]"},
	{OF("{}"), "sequences[0]"},
	{OF("{\"tokens\":[1],\"text\":\"\"}"), "sequences[0]"},
	{OF("{\"tokens\":[1]},{\"tokens\":1}"), "sequences[1].tokens"},
	{OF("{\"tokens\":[1,-1]}"), "sequences[0].tokens[1]"},
	{OF("{\"tokens\":[4294967296]}"), "sequences[0].tokens[0]"},
	{OF("{\"tokens\":[1.0]}"), "sequences[0].tokens[0]"},
	{OF("{\"tokens\":[null]}"), "sequences[0].tokens[0]"},
	{OF("{\"text\":1}"), "sequences[0].text"},
	{OF("{\"token\":[1]}"), "sequences[0].token"},
	{WITH("\"top_k\":0"), "top_k"},
	{WITH("\"top_k\":-1"), "top_k"},
	{WITH("\"top_k\":1.5"), "top_k"},
	{WITH("\"top_k\":\"1\""), "top_k"},
	{WITH("\"top_k\":99999999999"), "top_k"},
	{WITH("\"temperatures\":1"), "temperatures"},
	{WITH("\"temperatures\":[]"), "temperatures"},
	{WITH("\"temperatures\":[1,\"2\"]"), "temperatures[1]"},
	{WITH("\"temperatures\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"), "temperatures"},
	{WITH("\"own\":1"), "own"},
	{WITH("\"entropy\":null"), "entropy"},
	{WITH("\"first\":2147483648"), "first"},
	{WITH("\"last\":true"), "last"},
	{WITH("\"encoding\":\"text\""), "encoding"},
	{WITH("\"encoding\":1"), "encoding"},
	{WITH("\"values\":\"f64\""), "values"},
	{WITH("\"durable\":\"yes\""), "durable"},
	{WITH("\"store\":1"), "store"},
	{WITH("\"deadline_ms\":0"), "deadline_ms"},
	{WITH("\"gather\":[]"), "gather"},
	{WITH("\"gather\":{}"), "gather"},
	{WITH("\"gather\":[[1],[2]]"), "gather"},
	{WITH("\"gather\":[[1,[2]]]"), "gather[0][1]"},
	{WITH("\"gather\":[[[1],2]]"), "gather[0][1]"},
	{WITH("\"gather\":[[[-1]]]"), "gather[0][0][0]"},
	{WITH("\"draws\":{}"), "draws.n"},
	{WITH("\"draws\":[]"), "draws"},
	{WITH("\"draws\":{\"n\":1,\"seed\":true}"), "draws.seed"},
	{WITH("\"keep\":[]"), "keep"},
	{WITH("\"keep\":[\"a\"]"), "keep[0]"},
	{WITH("\"top_mass\":0"), "top_mass"},
	{WITH("\"spans\":[]"), "spans"},
	{WITH("\"spans\":[[1,2,3]]"), "spans[0]"},
	{WITH("\"spans\":[[[1]]]"), "spans[0][0]"},
	{WITH("\"spans\":[[1,-2]]"), "spans[0][1]"},
	{WITH("\"sum\":true"), "sequences[0]"},
	{WITH("\"sum\":true,\"spans\":[[1,2]]"), "sum"},
	{WITH("\"features\":[{\"layer\":1}]"), "features[0].kind"},
	{WITH("\"features\":[{\"kind\":\"q\",\"layer\":65536}]"), "features[0].layer"},
	{WITH("\"pooling\":\"sum\""), "pooling"},
	{WITH("\"feature_values\":1"), "feature_values"},
	{WITH("\"topk\":1"), "topk"},
	{WITH("\"teacher\":1"), "teacher"},
	{WITH("\"teacher\":\"\""), "teacher"},
	{WITH("\"teacher\":\"a\",\"mixture\":{\"rule\":\"mean\",\"members\":[{\"teacher\":\"b\"}]}"), "mixture"},
	{WITH("\"mixture\":\"a\""), "mixture"},
	{WITH("\"mixture\":{}"), "mixture.rule"},
	{WITH("\"mixture\":{\"rule\":\"median\",\"members\":[{\"teacher\":\"b\"}]}"), "mixture.rule"},
	{WITH("\"mixture\":{\"rule\":\"mean\"}"), "mixture.members"},
	{WITH("\"mixture\":{\"rule\":\"mean\",\"members\":{}}"), "mixture.members"},
	{WITH("\"mixture\":{\"rule\":\"mean\",\"members\":[]}"), "mixture.members"},
	{WITH("\"mixture\":{\"rule\":\"mean\",\"members\":[1,2,3,4,5,6,7,8,9]}"), "mixture.members"},
	{WITH("\"mixture\":{\"rule\":\"mean\",\"members\":[{\"teacher\":\"a\"},1]}"), "mixture.members[1]"},
	{WITH("\"mixture\":{\"rule\":\"mean\",\"members\":[{\"weight\":1}]}"), "mixture.members[0].teacher"},
	{WITH("\"mixture\":{\"rule\":\"mean\",\"members\":[{\"teacher\":\"a\",\"weight\":\"1\"}]}"), "mixture.members[0].weight"},
};

static void every_rejection_names_its_field(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof rejections / sizeof *rejections; i++) {
		struct json_score s = {0};
		struct error err = {0};
		assert_true(read_score(rejections[i].body, &s, &err) < 0);
		assert_string_equal(err.field, rejections[i].field);
		assert_true(err.message[0]);
		assert_null(s.request);
	}
}

static void a_mixture_has_a_rule_and_members(void **state)
{
	(void)state;
	struct json_score s = {0};
	struct error err = {0};
	assert_int_equal(read_score(WITH("\"top_k\":1,\"mixture\":{\"rule\":\"logits\",\"members\":[{\"teacher\":\"a\"},"
					 "{\"teacher\":\"b\",\"weight\":-0.5}]}"), &s, &err), 0);
	const struct choice_query *q = &s.request->asked;
	assert_true(q->is_mixture && q->rule == HEAD_SUM && q->n_members == 2);
	assert_string_equal(q->members[0].name, "a");
	assert_string_equal(q->members[1].name, "b");
	assert_true(q->members[0].weight == 1 && q->members[1].weight == -0.5);
	json_score_done(&s);
	assert_int_equal(read_score(WITH("\"top_k\":1,\"teacher\":\"b\""), &s, &err), 0);
	q = &s.request->asked;
	assert_true(!q->is_mixture && q->n_members == 1);
	assert_string_equal(q->members[0].name, "b");
	json_score_done(&s);
}

static void brackets_in_strings_are_not_depth(void **state)
{
	(void)state;
	struct json_run run;
	static const char body[] = "{\"config\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[[\",\"name\":\"n\"}";
	assert_int_equal(json_read_run(body, strlen(body), &run, NULL), 0);
	assert_string_equal(run.name, "n");
	json_run_done(&run);
}

static void small_bodies_are_read_and_refused(void **state)
{
	(void)state;
	struct json_tokenize t;
	struct json_detokenize d;
	struct json_run run;
	struct error err;
	static const char tokenize[] = "{\"text\":\"a\\u0062\",\"specials\":true}";
	assert_int_equal(json_read_tokenize(tokenize, strlen(tokenize), &t, &err), 0);
	assert_string_equal(t.text, "ab");
	assert_true(t.specials && t.add_special && !t.part);
	json_tokenize_done(&t);
	assert_int_equal(json_read_tokenize("{\"text\":\"a\",\"part\":true}", 24, &t, &err), 0);
	assert_true(t.part);
	json_tokenize_done(&t);
	assert_true(json_read_tokenize("{\"text\":\"a\",\"part\":1}", 21, &t, &err) < 0);
	assert_string_equal(err.field, "part");
	assert_true(json_read_tokenize("{}", 2, &t, &err) < 0);
	assert_string_equal(err.field, "text");
	assert_int_equal(json_read_detokenize("{\"tokens\":[1,2]}", 16, &d, &err), 0);
	assert_int_equal(d.sequence.n_tokens, 2);
	json_detokenize_done(&d);
	assert_true(json_read_run("{\"name\":\"x\"}", 12, &run, &err) < 0);
	assert_string_equal(err.field, "config");
}

static void replies_are_json_whatever_they_hold(void **state)
{
	(void)state;
	struct buffer b = {0};
	buffer_string(&b, "a\"\\\n\x7f\xff\xc3\xa9\xe2\x82", 10);
	assert_string_equal(b.data, "\"a\\\"\\\\\\u000a\\u007f\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\"");
	buffer_done(&b);
	static const float values[] = {0.1f, -1e-42f, 3.4028235e38f, 16777217.0f, -0.0f, 1.0f / 3.0f};
	for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
		buffer_float(&b, values[i]);
		float back = strtof(b.data, NULL);
		assert_memory_equal(&back, &values[i], sizeof back);
		buffer_done(&b);
	}
	buffer_float(&b, NAN);
	assert_string_equal(b.data, "null");
	buffer_done(&b);
	for (size_t n = 0; n < 4; n++) {
		static const char *const expected[] = {"", "Zg==", "Zm8=", "Zm9v"};
		buffer_text(&b, "");
		buffer_base64(&b, "foo", n);
		assert_string_equal(b.data, expected[n]);
		buffer_done(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_whole_question_is_read),        cmocka_unit_test(a_whole_request_is_read),
		cmocka_unit_test(what_is_left_out_has_its_default),
		cmocka_unit_test(every_rejection_names_its_field),   cmocka_unit_test(brackets_in_strings_are_not_depth),
		cmocka_unit_test(a_mixture_has_a_rule_and_members),
		cmocka_unit_test(small_bodies_are_read_and_refused), cmocka_unit_test(replies_are_json_whatever_they_hold),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
