// SPDX-License-Identifier: Apache-2.0
// The program kdctl as a shell sees it, against a server that plays its part and a store on disk.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/cursor.h"
#include "common/error.h"
#include "daemon/store/store.h"
#include "tests/unit/fake_server.h"
#include "tests/unit/rows_example.h"

struct outcome {
	int status;
	char text[16384];        // stdout, then stderr
};

// `arguments` are a shell's; stdin is empty unless they say otherwise.
static struct outcome run(const char *server, const char *arguments)
{
	static struct outcome o;
	char command[1024];
	const char *build = getenv("top_builddir");
	snprintf(command, sizeof command, "KDSERVED_SERVER='%s' '%s/kdctl' %s </dev/null 2>&1", server, build ? build : ".", arguments);
	fflush(stdout);
	FILE *f = popen(command, "re");
	assert_non_null(f);
	size_t n = fread(o.text, 1, sizeof o.text - 1, f);
	o.text[n] = '\0';
	int status = pclose(f);
	o.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	return o;
}

static void expect(struct outcome o, int status, const char *text)
{
	if (o.status != status || !strstr(o.text, text))
		fail_msg("status %d (want %d), output: %s (want: %s)", o.status, status, o.text, text);
}

static void expect_one_line(struct outcome o, int status, const char *text)
{
	expect(o, status, text);
	assert_ptr_equal(strchr(o.text, '\n'), o.text + strlen(o.text) - 1);
}

static void wrong_usage_is_one_line_and_2(void **state)
{
	(void)state;
	const char *const cases[][2] = {
		{"", "a command is expected"}, {"frobnicate", "frobnicate: no such command"}, {"--frob status", "--frob"},
		{"status extra", "extra"}, {"--server", "value is missing"}, {"status --frob", "--frob"}, {"model --frob", "--frob"},
		{"score", "one FILE is expected"}, {"score a b", "one FILE is expected"}, {"score --length 0 a", "--length 0"},
		{"score --length 1.5 a", "--length 1.5"}, {"score --top-k x a", "--top-k x"},
		{"score --values f8 a", "f32, f16 or u8 is expected"}, {"score --temperatures 1,0 a", "--temperatures 1,0"},
		{"score --length", "value is missing"}, {"score --frob a", "--frob"},
		{"score --format pdf a", "text, jsonl, u16, u32 or npy"}, {"score --top-mass 2 a", "--top-mass 2"},
		{"score --draws 0 a", "--draws 0"}, {"score --tau 0 a", "--tau 0"}, {"score --seed -1 a", "--seed -1"},
		{"score --seed 1.5 a", "--seed 1.5"}, {"score --gather 1,x a", "--gather 1,x"}, {"score --gather , a", "there are no ids"},
		{"score --keep -3 a", "--keep -3"}, {"score --features hid:1 a", "--features hid:1"},
		{"score --features hidden a", "--features hidden"}, {"score --features final:1 a", "--features final:1"},
		{"score --features q:x a", "--features q:x"}, {"score --pooling max a", "none, mean or last"},
		{"score --feature-values u8 a", "f32, f16 or bf16"}, {"score --first x a", "--first x"},
		{"score --last 1e12 a", "--last 1e12"}, {"score --batch 0 a", "--batch 0"}, {"score --in-flight 0 a", "--in-flight 0"},
		{"score --deadline 0 a", "--deadline 0"}, {"score --resume a", "--resume needs --records or --output"},
		{"score --records x --output y a", "exclude each other"},
		{"score --records x --resume --overwrite a", "exclude each other"}, {"score --no-store --durable a", "exclude each other"},
		{"score --temperatures 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17 a", "more than 16"},
		{"generate", "--prompt TEXT is expected"}, {"generate --prompt x --tokens -1", "-1: not a number"},
		{"generate --prompt x --top-p 2", "2: not a number"}, {"generate --prompt x --seed", "value is missing"},
		{"generate --prompt x more", "--prompt TEXT is expected"}, {"train", "one RUN.conf is expected"},
		{"train --name ../x a", "--name ../x"}, {"runs a b", "plot ID is expected"}, {"store", "are expected"},
		{"store ls", "a DIR is expected"}, {"store cat a b c", "a DIR is expected"}, {"store frob /tmp", "frob: ls, cat, "},
		{"store verify --threads 0 /tmp", "--threads 0"}, {"store verify --frob", "--frob"}, {"store compact", "a DIR is expected"},
		{"store compact --shard 3 /tmp", "--shard 3"}, {"store compact --threads x /tmp", "--threads x"},
		{"store merge /tmp", "at least one other"}, {"store merge /tmp /tmp/.", "is the directory to merge into"},
		{"store prune /tmp", "--max-bytes, --older-than or both"}, {"store prune --max-bytes 0 /tmp", "--max-bytes 0"},
		{"store prune --older-than 3y /tmp", "--older-than 3y"}, {"store prune --max-bytes 99999999999T /tmp", "--max-bytes"},
		{"store stat", "a DIR is expected"}, {"store stat --threads", "--threads"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		expect_one_line(run("unix:/nonexistent/s", cases[i][0]), 2, cases[i][1]);
}

static void help_and_version_are_0(void **state)
{
	(void)state;
	expect(run("", "--version"), 0, "kdctl ");
	expect(run("", "--help"), 0, "Usage: kdctl");
	const char *const commands[] = {"status", "model", "score", "generate", "train", "runs", "store"};
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
		char arguments[64];
		snprintf(arguments, sizeof arguments, "%s --help", commands[i]);
		expect(run("", arguments), 0, "Usage: kdctl");
	}
}

static void absent_server_is_one_line_and_1(void **state)
{
	(void)state;
	expect_one_line(run("unix:/nonexistent/s", "status"), 1,
			"kdctl: status: cannot connect to unix:/nonexistent/s: No such file or directory");
	expect_one_line(run("ftp:x", "status"), 78, "unix:PATH, tcp:HOST:PORT or tls:HOST:PORT is expected");
	expect_one_line(run("", "--server ftp:x status"), 2, "unix:PATH, tcp:HOST:PORT or tls:HOST:PORT is expected");
	expect_one_line(run("' KDSERVED_TOKEN_FILE='/nonexistent/t", "status"), 78, "/nonexistent/t");
	expect_one_line(run("unix:/nonexistent/s", "--token-file /dev/null status"), 1, "/dev/null: holds no token");
	expect_one_line(run("unix:/nonexistent/s", "--token-file /nonexistent/t status"), 1, "/nonexistent/t");
}

static void reply(struct fake_server *s, uint64_t id, uint32_t status, const char *text)
{
	uint8_t body[1024];
	struct writer w = writer_init(body, sizeof body);
	struct frame_reply m = {.status = status, .body = (char *)text, .body_bytes = strlen(text)};
	frame_reply_encode(&m, &w);
	fake_server_send(s, FRAME_REPLY, id, body, w.position);
}

// What each control resource answers. A run is running when first looked at, then at its end.
static void answer_call(struct fake_server *s, uint64_t id, const struct frame_call *call, int *n_looks)
{
	if (strcmp(call->path, "/v1/tokenize") == 0)
		reply(s, id, 200, "{\"tokens\":[1,2,3,4,5],\"offsets\":[]}");
	else if (strcmp(call->path, "/v1/detokenize") == 0)
		reply(s, id, 200, strcmp(call->body, "{\"tokens\":[0,0,0]}") == 0 ? "{\"text\":\"la la la\"}" : "{\"text\":\"?\"}");
	else if (strcmp(call->path, "/v1/model") == 0)
		reply(s, id, 200, "{\"id\":\"abc\",\"eos_id\":7,\"shape\":{\"layers\":2}}");
	else if (strcmp(call->path, "/v1/runs") == 0 && strcmp(call->method, "POST") == 0)
		reply(s, id, strstr(call->body, "steps = 3") ? 201 : 400,
		      strstr(call->body, "steps = 3") ? "{\"id\":\"r1\",\"state\":\"queued\"}" :
		      "{\"error\":{\"code\":\"invalid\",\"message\":\"no steps\",\"field\":\"steps\"}}");
	else if (strcmp(call->path, "/v1/runs") == 0)
		reply(s, id, 200, "{\"runs\":[{\"id\":\"r1\",\"state\":\"running\",\"progress\":{\"step\":1,\"steps\":3,\"loss\":2.5}}]}");
	else if (strcmp(call->path, "/v1/runs/r1") == 0)
		reply(s, id, 200, (*n_looks)++ ? "{\"id\":\"r1\",\"state\":\"failed\",\"reason\":\"the corpus is empty\"}" :
		      "{\"id\":\"r1\",\"state\":\"running\"}");
	else if (strcmp(call->path, "/v1/runs/rude") == 0)
		reply(s, id, 200, "{\"id\":\"rude\",\"na\\u001bme\":1,\"state\":\"done\",\"reason\":\"a\\u001b[2Jb\\nc\\u009bd\\u00e9\"}");
	else if (strcmp(call->path, "/v1/runs/ruder") == 0)
		reply(s, id, 404, "{\"error\":{\"code\":\"not_found\",\"message\":\"no\\u001bone\\r\"}}");
	else
		reply(s, id, 404, "{\"error\":{\"code\":\"not_found\",\"message\":\"no such resource\"}}");
}

// "la" at a time, a continuation for each sample asked; the last ends at a stop string where one was given.
static void answer_generate(struct fake_server *s, uint64_t id, const struct frame_generate *m)
{
	static const uint32_t la[] = {0};
	static const float number[] = {-0.5f};
	for (uint32_t i = 0; i < 3 * m->n; i++) {
		uint8_t body[256];
		struct writer w = writer_init(body, sizeof body);
		const char *text = i / m->n ? " la" : "la";
		struct frame_tokens t = {.index = i % m->n, .flags = i / m->n == 2 ? FRAME_TOKENS_LAST : 0, .first = i / m->n, .n = 1,
			.tokens = la, .logprobs = number, .sampled_logprobs = number, .lse = number, .text = text,
			.text_bytes = (uint32_t)strlen(text), .finish = m->n_stops ? FRAME_FINISH_STOP : FRAME_FINISH_LENGTH,
			.stop_id = FRAME_TOKENS_NONE, .stop = m->n_stops ? m->n_stops - 1 : FRAME_TOKENS_NONE,
			.seed = m->flags & FRAME_GENERATE_SEED ? m->seed : 9};
		frame_tokens_encode(&t, &w);
		fake_server_send(s, FRAME_TOKENS, id, body, w.position);
	}
	fake_server_send(s, FRAME_DONE, id, NULL, 0);
}

static void play(struct fake_server *s)
{
	int n_looks = 0;
	for (;;) {
		uint8_t *body;
		struct frame_score score = {0};
		struct frame_call call = {0};
		struct frame_generate generate = {0};
		struct frame f = fake_server_read(s, &body);
		if (f.kind == FRAME_SCORE && frame_score_decode(body, f.body_bytes, &score, NULL) == 0) {
			for (uint32_t i = score.n_sequences; i--;)
				fake_server_send_answer(s, f.request_id, &score, i, i);
			fake_server_send(s, FRAME_DONE, f.request_id, NULL, 0);
		} else if (f.kind == FRAME_CALL && frame_call_decode(body, f.body_bytes, &call, NULL) == 0) {
			answer_call(s, f.request_id, &call, &n_looks);
		} else if (f.kind == FRAME_GENERATE && frame_generate_decode(body, f.body_bytes, &generate, NULL) == 0) {
			answer_generate(s, f.request_id, &generate);
		}
		frame_generate_done(&generate);
		frame_score_done(&score);
		frame_call_done(&call);
		free(body);
		if (!f.kind)
			return;
	}
}

static struct outcome run_with_server(const char *arguments)
{
	struct fake_server s = {.play = play};
	fake_server_open(&s);
	struct outcome o = run(s.address, arguments);
	fake_server_close(&s);
	return o;
}

// Runs "kdctl ARGUMENTS FILE" with a file of that text.
static struct outcome run_with_file(const char *arguments, const char *name, const char *text)
{
	char directory[] = "/tmp/kdserved-test-XXXXXX", path[128], all[512];
	assert_non_null(mkdtemp(directory));
	snprintf(path, sizeof path, "%s/%s", directory, name);
	snprintf(all, sizeof all, "%s %s", arguments, path);
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
	struct outcome o = run_with_server(all);
	unlink(path);
	rmdir(directory);
	return o;
}

static void shows_what_the_server_says(void **state)
{
	(void)state;
	expect(run_with_server("model"), 0, "shape.layers             2\n");
	expect(run_with_server("--json model"), 0, "{\"id\":\"abc\",\"eos_id\":7,\"shape\":{\"layers\":2}}\n");
	expect_one_line(run_with_server("status"), 1, "no such resource");
	expect(run_with_server("runs"), 0, "r1                       running                       1/3     2.5000");
}

// What a server says cannot steer a terminal; for machines it stays what it is.
static void control_characters_of_a_server_are_not_printed(void **state)
{
	(void)state;
	struct outcome o = run_with_server("runs rude");
	expect(o, 0, "a?[2Jb?c??d\u00e9\n");
	expect(o, 0, "na?me ");
	assert_null(strchr(o.text, '\x1b'));
	expect_one_line(run_with_server("runs ruder"), 1, "no?one?");
	expect(run_with_server("--json runs rude"), 0, "a\\u001B[2Jb\\nc");
}

static void scores_texts_and_token_lists(void **state)
{
	(void)state;
	// The fake teacher: lse of row i is 5 + i, own logit 2; rows with a follower: 0 and 1 of windows of 3.
	struct outcome o = run_with_file("--json score --length 3 --top-k 2", "text", "whatever");
	expect(o, 0, "{\"id\":\"aea7598e0ca6291db323fa6f59c749d2f1634fa56318a9c031c3571c73ed8737\",\"cached\":false,\"first\":0,\"last\":2,"
	       "\"tokens\":[1,2,3],\"rows\":[{\"status\":\"ok\",\"lse\":[5],\"ids\":[0,1],\"logits\":[4,3],\"own_logit\":2},");
	expect(o, 0, "\"cached\":true,\"first\":0,\"last\":1,\"tokens\":[4,5],\"rows\":[");
	expect(o, 0, "\"resumed\":0,\"sequences\":2,\"tokens\":5,\"positions\":5,\"cached\":1,");
	expect(o, 0, "\"cached_percent\":50.0");
	expect(o, 0, "\"scored_tokens\":3,\"nll\":10.0,\"perplexity\":28.0316");    // exp(10 / 3)
	expect(run_with_file("score --length 3 --top-k 2", "text", "whatever"), 0, "perplexity               28.0316");
	expect(run_with_file("score --length 3 --top-k 2 --temperatures 2", "text", "whatever"), 0, "perplexity               28.0316");
	o = run_with_file("--json score --top-k 2", "some.jsonl", "{\"tokens\":[5,6]}\n\n{\"text\":\"x\",\"label\":7}\r\n");
	expect(o, 0, "\"tokens\":[5,6]");
	expect(o, 0, "\"tokens\":[1,2,3,4,5]");
	expect(o, 0, "\"empty\":1");
	expect(run_with_file("score --top-k 2 --lines", "text", "{\"tokens\":[1000]}\n"), 1,
	       "sequence 0: tokens[0]: id 1000 is outside the vocabulary (1000)");
	expect_one_line(run_with_file("score --top-k 9", "text", "x"), 1, "top_k: 9 is over the limit (8)");
}

static void broken_input_is_one_line_and_1(void **state)
{
	(void)state;
	const struct { const char *options, *text, *want; } cases[] = {
		{"", "", "there is nothing to score"}, {"", "\xff\xfe", "not UTF-8 between bytes 0 and 2"},
		{"--lines", "{\"tokens\":[1]}\n{\"text\":1}\n", "line 2: {\"text\":\"...\"} or"},
		{"--lines", "{\"tokens\":[-1]}\n", "not a token id"}, {"--lines", "{\"tokens\":[1.5]}\n", "not a token id"},
		{"--lines", "[]\n", "line 1: "}, {"--lines", "{\n", "line 1: "},
		{"--lines", "{\"text\":\"x\",\"tokens\":[1]}\n", "line 1: "}, {"--lines", "\n", "there is nothing to score"},
		{"--lines", "{\"tokens\":[1,2],\"spans\":[[1]]}\n", "line 1: spans: [[begin,end],..]"},
		{"--lines", "{\"tokens\":[1,2],\"spans\":[[1,9]]}\n", "sequence 0: spans[0]"},
		{"--lines", "{\"tokens\":[1,2],\"gather\":[[1],2]}\n", "line 1: gather: "},
		{"--lines", "{\"tokens\":[1,2],\"gather\":[[1],[\"a\"]]}\n", "line 1: gather[1][0]: not a token id"},
		{"--lines", "{\"tokens\":[1,2],\"gather\":[[1],[2],[3]]}\n", "sequence 0: gather"},
		{"--lines", "{\"tokens\":[1,2],\"first\":\"a\"}\n", "line 1: first: not a position"},
		{"--lines", "{\"tokens\":[1,2],\"first\":2}\n", "sequence 0: first"},
		{"--lines --length 1", "{\"tokens\":[1,2],\"first\":0}\n", "2 tokens are more than --length 1"},
		{"--format u16", "abc", "it ends in the middle of a number"},
		{"--format u32", "\x01\xff\xff\xff", "outside the vocabulary"}, {"--format npy", "abc", "this is not a NumPy file"},
		{"--format npy", "\x93NUMPY\x01\x01\xff", "this is not a NumPy file"},
		{"--format npy", "\x93NUMPY\x01\x01\x10\x10{", "header is cut short"},
		{"--gather @/nonexistent/ids", "x", "/nonexistent/ids"}, {"--records /nonexistent/r", "x", "/nonexistent/r"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char arguments[256];
		snprintf(arguments, sizeof arguments, "score --top-k 2 %s", cases[i].options);
		expect_one_line(run_with_file(arguments, "file", cases[i].text), 1, cases[i].want);
	}
	expect_one_line(run_with_server("score /nonexistent/file"), 1, "/nonexistent/file: No such file or directory");
	expect_one_line(run_with_server("score /tmp"), 1, "/tmp: Is a directory");
}

static void continues_a_text(void **state)
{
	(void)state;
	expect(run_with_server("generate --prompt hum --tokens 3 --temperature 0"), 0, "la la la\n");
	expect(run_with_server("generate --prompt hum --samples 2"), 0, "la la la\n---\nla la la\n---\n");
	expect(run_with_server("--json generate --prompt hum --seed 4 --stop x --stop y"), 0,
	       "{\"sample\":0,\"tokens\":[0,0,0],\"text\":\"la la la\","
	       "\"logprobs\":[-0.5,-0.5,-0.5],\"finish\":\"stop\",\"stop\":\"y\",\"seed\":4}\n");
	expect(run_with_server("--json generate --prompt hum --samples 2"), 0, "\"finish\":\"length\",\"seed\":9}\n{\"sample\":1,");
}

static void follows_a_run_to_its_end(void **state)
{
	(void)state;
	struct outcome o = run_with_file("train", "run.conf", "steps = 3\n");
	expect(o, 1, "run                      r1\n");
	expect(o, 1, "kdctl: train: run r1 failed: the corpus is empty\n");
	expect(run_with_file("train --detach", "run.conf", "steps = 3\n"), 0, "r1\n");
	expect_one_line(run_with_file("train", "run.conf", "x\n"), 1, "kdctl: train: steps: no steps");
	expect_one_line(run_with_server("runs ../model"), 1, "not the id of a run");
}

static void fill_store(const char *directory)
{
	struct store_options options = {.directory = directory};
	struct store *store;
	assert_int_equal(store_open(&options, &store, NULL), 0);
	for (int i = 0; i < 3; i++) {
		struct query q = {.last = -1, .top_k = 4, .own = true};
		struct record_rows *rows = i ? rows_random((uint64_t)i, &q, 9, 100, i == 2) : rows_example();
		struct record *record;
		assert_int_equal(record_encode(rows, &record, NULL), 0);
		assert_int_equal(store_append(store, record, STORE_FLUSHED, NULL, NULL, NULL), 0);
		record_unref(record);
		record_rows_free(rows);
	}
	store_close(store);
}

// Flips a bit of the second record: its magic is found in the shard.
static void damage_store(const char *directory)
{
	char path[256], bytes[65536];
	snprintf(path, sizeof path, "%s/00000000.shard", directory);
	FILE *f = fopen(path, "r+");
	assert_non_null(f);
	size_t n = fread(bytes, 1, sizeof bytes, f);
	char *first = memmem(bytes, n, "KDRC", 4);
	assert_non_null(first);
	char *second = memmem(first + 4, n - (size_t)(first + 4 - bytes), "KDRC", 4);
	assert_non_null(second);
	long at = second + 150 - bytes;
	assert_int_equal(fseek(f, at, SEEK_SET), 0);
	fputc(bytes[at] ^ 1, f);
	assert_int_equal(fclose(f), 0);
}

static struct outcome run_store(const char *action, const char *directory, const char *rest)
{
	char arguments[512];
	snprintf(arguments, sizeof arguments, "%s %s %s", action, directory, rest);
	return run("", arguments);
}

static void merges_and_compacts_stores(void **state)
{
	(void)state;
	char from[] = "/tmp/kdserved-test-XXXXXX", into[64], command[128];
	assert_non_null(mkdtemp(from));
	fill_store(from);
	snprintf(into, sizeof into, "%s/into", from);
	expect(run_store("store merge", into, from), 0, "3 records of 1 directories: 3 added");
	expect(run_store("store merge --json", into, from), 0, "\"added\":0,\"added_bytes\":0,\"there\":3,\"damaged\":0}}");
	struct outcome o = run_store("store cat", from, "");
	expect(run_store("store cat", into, ""), 0, o.text);
	expect(run_store("store verify", into, ""), 0, "3 records verified, 20 rows");
	expect(run_store("store compact", into, ""), 0, "3 records: 0 second copies and 0 contained");
	expect(run_store("store compact --json --keep-contained", into, ""), 0, "\"rewritten\":0,\"left\":0,");
	expect(run_store("store prune --max-bytes 1", into, ""), 0, "0 shards (0 bytes) removed, 1 (");
	snprintf(command, sizeof command, "--json --overwrite --output %s/lines.jsonl", from);
	expect(run_store("store export", from, command), 0, "3");
	snprintf(command, sizeof command, "%s/lines.jsonl --json", from);
	expect(run_store("store import", into, command), 0, "{");
	damage_store(from);
	snprintf(command, sizeof command, "%s/more", from);
	o = run_store("store merge", command, from);
	expect(o, 1, "00000000.shard:");
	expect(o, 1, "2 added");
	expect(run_store("store compact", from, ""), 1, "1 damaged places: 0 dropped, 1 shards left as they are");
	expect(run_store("store compact --drop-damaged", from, ""), 0, "1 damaged places: 1 dropped, 0 shards left as they are");
	expect(run_store("store verify", from, ""), 0, "2 records verified");
	struct store *store;
	assert_int_equal(store_open(&(struct store_options){.directory = into}, &store, NULL), 0);
	expect(run_store("store compact", into, ""), 1, "another process");
	expect(run_store("store prune --max-bytes 1", into, ""), 1, "another process");
	expect(run_store("store merge", into, from), 1, "another process");
	expect(run_store("store prune --dry-run --max-bytes 1", into, ""), 0, "would be left");
	store_close(store);
	snprintf(command, sizeof command, "rm -r '%s'", from);
	assert_int_equal(system(command), 0);
}

static void looks_into_a_store(void **state)
{
	(void)state;
	char directory[] = "/tmp/kdserved-test-XXXXXX", command[128];
	assert_non_null(mkdtemp(directory));
	fill_store(directory);
	expect(run_store("store ls", directory, ""), 0, "3 records, 20 rows");
	expect(run_store("store verify", directory, ""), 0, "3 records verified, 20 rows");
	struct outcome o = run_store("store cat", directory, "d043617e7051");
	expect(o, 0, "\"tokens\":[3,1,4]");
	expect(o, 0, "\"ids\":[7,4],\"logits\":[2,1],\"own_logit\":1");
	expect(o, 0, "\"own_logit\":null");
	expect(run_store("store cat", directory, ""), 0, "{\"status\":\"not_finite\"}");
	expect(run_store("store cat", directory, "ffff00"), 1, "no record whose key begins so");
	expect(run_store("--json store ls", directory, ""), 0, "\"damaged\":0");
	expect(run_store("store ls --json", directory, ""), 0, "\"damaged\":0");
	o = run_store("store verify --threads 2 --json", directory, "");
	expect(o, 0, "{\"summary\":{\"records\":3,\"rows\":20,");
	expect(o, 0, "\"threads\":2,");
	expect(run_store("store stat", directory, ""), 0, "3 records, 20 rows");
	o = run_store("store stat --json", directory, "");
	expect(o, 0, "{\"records\":3,\"rows\":20,\"tokens\":21,");
	expect(o, 0, "\"kind\":\"top-4 f32 own\"");
	expect(o, 0, "\"teachers\":[{");
	expect(run_store("store stat --server unix:/nonexistent/socket", directory, ""), 1, "/nonexistent/socket");
	expect(run_store("store prune --older-than 1w --max-bytes 1", directory, ""), 0, "0 shards (0 bytes) removed, 1 (");
	expect(run_store("store prune --json --dry-run --max-bytes 1G", directory, ""), 0,
		"{\"summary\":{\"shards\":0,\"bytes\":0,\"left_shards\":1,");
	damage_store(directory);
	o = run_store("store verify --json", directory, "");
	expect(o, 1, "{\"damage\":{\"place\":\"00000000.shard:");
	expect(run_store("store stat", directory, ""), 1, "1 damaged places");
	o = run_store("store verify", directory, "");
	expect(o, 1, "00000000.shard:");
	expect(o, 1, "2 records verified");
	expect(o, 1, "1 damaged");
	expect(run_store("store ls", "/nonexistent", ""), 1, "no such directory");
	expect(run_store("store verify", "/proc/self/task", ""), 0, "there is no shard in /proc/self/task");
	snprintf(command, sizeof command, "rm -r '%s'", directory);
	assert_int_equal(system(command), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wrong_usage_is_one_line_and_2),
		cmocka_unit_test(help_and_version_are_0),
		cmocka_unit_test(absent_server_is_one_line_and_1),
		cmocka_unit_test(shows_what_the_server_says),
		cmocka_unit_test(control_characters_of_a_server_are_not_printed),
		cmocka_unit_test(scores_texts_and_token_lists),
		cmocka_unit_test(broken_input_is_one_line_and_1),
		cmocka_unit_test(continues_a_text),
		cmocka_unit_test(follows_a_run_to_its_end),
		cmocka_unit_test(looks_into_a_store),
		cmocka_unit_test(merges_and_compacts_stores),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
