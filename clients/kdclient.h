// SPDX-License-Identifier: Apache-2.0
// libkdclient: asks a kdserved server what its teacher thinks (libkdclient.3; the protocol is kdserved-protocol.7).
//
// Functions return 0 or -errno; on failure *err (may be NULL) says why. Threads may share a client: their requests travel side by side on
// one connection. Only kd_close must be the last call. An answer is used by one thread at a time. No call raises SIGPIPE. Blocking calls
// wait as long as the server keeps sending: they fail with -ETIMEDOUT when nothing arrived for the client's timeout_ms.
#ifndef KDCLIENT_H
#define KDCLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kd_client;
struct kd_answer;

struct kd_error {
	char code[32];          // "invalid", "too_large", "unauthorized", ...: kdserved-protocol.7
	char field[64];         // what to mend: "sequences[3].tokens[17]"; may be empty
	char message[320];
};

// Structures that the caller fills begin with their size, so that a program built with an older header still works: begin them with their
// _INIT. What is left zero is not asked for.
struct kd_options {
	size_t size;
	const char *address;    // "unix:PATH", "tcp:HOST:PORT" or, encrypted, "tls:HOST:PORT" (also "tcp:[V6]:PORT")
	const char *token;      // bearer token; NULL = none
	const char *teacher;    // fingerprint that must be served, 64 hexadecimal digits; NULL = any
	int connect_timeout_ms; // to be connected and welcomed; 0 = 10 s, negative = no limit
	int timeout_ms;         // longest silence in a blocking call; 0 = 60 s, negative = no limit
	uint32_t max_body_bytes;// largest answer accepted; 0 = 256 MiB
	uint32_t flags;         // none yet: 0
	const char *ca;         // with tls: file of the certificates (PEM) one of which must vouch for the server's; NULL = the system's
	const char *server_name;// with tls: whom the server's certificate must be for; NULL = HOST
};

struct kd_server {              // what the server said in its welcome; the library's
	char teacher[65];       // fingerprint of weights, tokenizer and numeric format, hexadecimal
	uint32_t vocab_size;
	uint32_t max_tokens;    // of one sequence
	uint32_t max_top_k;
	uint32_t max_sequences; // of one request
	uint32_t max_body_bytes;
	uint32_t credits;       // requests that may be in flight
	uint32_t max_gather;    // ids of one row's list
	uint32_t max_draws;     // of one row
	uint32_t max_spans;     // of one sequence
	uint32_t n_layers, width, q_width, kv_width;    // of features
};

int kd_open(const struct kd_options *options, struct kd_client **ret_client, struct kd_error *err);
void kd_close(struct kd_client *client);                         // NULL is fine; answers stay valid
const struct kd_server *kd_server(const struct kd_client *client);
bool kd_is_draining(const struct kd_client *client);             // the server said goaway: open a new connection for new requests
// Readable when kd_next has something to do; do not read it. With tls, what it shows may be several events: take them (kd_next with 0)
// until -ETIMEDOUT before waiting for it.
int kd_fd(const struct kd_client *client);
int kd_ping(struct kd_client *client, double *ret_ms, struct kd_error *err);    // ret_ms may be NULL

// ---- a question. Row i is what the teacher predicts after tokens 0..i; definitions are in kdserved-record.5.

enum { KD_F32 = 0, KD_F16 = 1, KD_U8 = 2, KD_BF16 = 3 };       // formats of numbers on their way
enum { KD_HIDDEN = 0, KD_FINAL = 1, KD_Q = 2, KD_K = 3, KD_V = 4 };
enum { KD_POOLING_NONE = 0, KD_POOLING_MEAN = 1, KD_POOLING_LAST = 2 };

struct kd_lists {                   // lists of ids: one for all rows, or one per row
	uint32_t n_lists;           // 0 = none
	const uint32_t *offsets;    // (n_lists + 1) list i is ids[offsets[i]] .. ids[offsets[i + 1] - 1]
	const uint32_t *ids;
};
struct kd_span { uint32_t begin, end; };        // tokens begin .. end - 1; begin >= 1
struct kd_rows_range { int32_t first, last; };  // inclusive; negative counts from the end
struct kd_draws {                   // random sampling: n ids with replacement from p^tau
	uint32_t n;                 // of each row; 0 = none
	float tau;                  // 0 = 1
	uint64_t seed;
	bool tail;                  // only ids outside the row's top-k
};
struct kd_feature { uint16_t kind, layer; };    // KD_HIDDEN (layer 0 = embeddings), KD_FINAL (layer 0), KD_Q, KD_K, KD_V (layer from 0)

struct kd_query {                   // any combination, at least one signal
	size_t size;
	int32_t first, last;        // rows wanted, inclusive; negative counts from the end
	uint32_t top_k;             // likeliest ids of each row; 0 = none
	float top_mass;             // 0 = exactly top_k; else the fewest ids whose probability sums to this, at most top_k
	int values;                 // of logits: KD_F32 exact, KD_F16 and KD_U8 differences to the row's maximum
	bool own;                   // logit of the token that really follows
	bool entropy, max_prob, argmax, sum_squares;    // of the row's distribution at temperature 1
	bool tail;                  // ln of the probability outside the top-k
	bool dense;                 // every logit
	uint32_t n_temperatures;
	const float *temperatures;  // of the lse values; none = at 1
	struct kd_lists gather;     // logits at these ids
	struct kd_draws draws;
	uint32_t n_keep;
	const uint32_t *keep;       // all of the above over these ids alone
	uint32_t n_spans;
	const struct kd_span *spans;        // sums of ln p of the tokens in each
	uint32_t n_features;
	const struct kd_feature *features;  // hidden states and q, k, v rows
	int pooling;                // of features, over the rows: KD_POOLING_*
	int feature_values;         // KD_F32, KD_F16 or KD_BF16
};

struct kd_sequence {
	const uint32_t *tokens;
	uint32_t n_tokens;
	// instead of the query's, for this sequence alone; 0 and NULL = the query's
	uint32_t n_spans;
	const struct kd_span *spans;
	const struct kd_lists *gather;
	const struct kd_rows_range *rows;
};

#define KD_DURABLE 1u               // answer when the record is on the server's disk
#define KD_NO_STORE 2u              // neither look in the server's store nor add to it
#define KD_WAIT 0x80000000u         // kd_submit and kd_submit_callback: wait for a credit instead of failing with -EAGAIN

struct kd_request {
	size_t size;
	const struct kd_query *query;
	const struct kd_sequence *sequences;
	uint32_t n_sequences;
	uint32_t flags;
	uint32_t deadline_ms;       // the server drops the work after this; 0 = its default
};

// Blocking. Any number of sequences: split into as many requests as the server's limits call for. On success answers[i] belongs to
// sequences[i]; free each. On failure (of any sequence: err->field names it) answers holds nothing.
int kd_score(struct kd_client *client, const struct kd_request *request, struct kd_answer **answers, struct kd_error *err);

// Pipelined: submit request n + 1 while n is being computed. -EAGAIN: no credit left, take events first; -E2BIG: over the server's
// limits; -ESHUTDOWN: the server is draining. The request is copied.
int kd_submit(struct kd_client *client, const struct kd_request *request, uint64_t *ret_id, struct kd_error *err);
int kd_cancel(struct kd_client *client, uint64_t id, struct kd_error *err);     // the request still ends with an event

enum kd_event_kind {
	KD_EVENT_ANSWER,            // one sequence: answer is yours to free
	KD_EVENT_SEQUENCE_FAILED,   // one sequence: error
	KD_EVENT_DONE,              // the request is complete: every sequence had one of the above
	KD_EVENT_REQUEST_FAILED,    // the request is over, nothing more of it follows: error
};

struct kd_event {
	enum kd_event_kind kind;
	uint64_t id;                // of the request
	uint32_t index;             // of the sequence in it
	struct kd_answer *answer;
	struct kd_error error;
	uint64_t reserved[4];
};

// The same, told by callback instead of kd_next: it gets each event of the request, last one KD_EVENT_DONE or KD_EVENT_REQUEST_FAILED,
// exactly one of them for each call that succeeded. The client's own thread calls, one event at a time. A callback may use the client
// (also to submit), but not close it; event->answer is its to free. kd_close ends what is left with "cancelled" before it returns.
int kd_submit_callback(struct kd_client *client, const struct kd_request *request, void (*callback)(void *arg, struct kd_event *event),
		       void *arg, uint64_t *ret_id, struct kd_error *err);

// The next event of any request of kd_submit, in order of arrival. Waits up to timeout_ms (0 = only what is there, negative = the
// connection's timeout). -ETIMEDOUT: nothing yet; -ENODATA: nothing is in flight; any other: the connection is lost.
int kd_next(struct kd_client *client, int timeout_ms, struct kd_event *ret_event, struct kd_error *err);

// ---- generation: the teacher goes on from prompts. What the fields mean is said in kdserved-http.7 under POST /v1/generate.

struct kd_prompt { const uint32_t *tokens; uint32_t n_tokens; };

struct kd_generation {
	size_t size;
	const struct kd_prompt *prompts;
	uint32_t n_prompts;
	uint32_t n;                 // samples of each prompt
	uint32_t first_sample;
	uint32_t max_tokens;        // to be chosen for each sample
	uint32_t rows;              // ids and raw logits of each token's row; 0 = none
	float temperature;          // 0 = always the likeliest
	uint32_t top_k;             // 0 = all
	float top_p, min_p, typical_p;
	const uint64_t *seed;       // NULL = the server draws one
	uint32_t n_stop_ids;        // tokens that end an answer
	const uint32_t *stop_ids;
	uint32_t n_stops;           // strings that do
	const char *const *stops;
	uint32_t n_forced;          // tokens that every answer begins with
	const uint32_t *forced;
	bool ignore_eos;
	uint32_t deadline_ms;       // 0 = none
};

enum { KD_FINISH_STOP = 1, KD_FINISH_LENGTH = 2 };

struct kd_piece {                   // what is new of one sample; views of the library's, until the callback returns
	uint32_t index;             // prompt n + number of the sample
	uint32_t first, n;          // tokens first .. first + n - 1 of the answer
	const uint32_t *tokens;     // (n)
	const float *logprobs;      // (n) in the teacher's own distribution
	const float *sampled_logprobs;      // (n) where each was drawn from; 0 where nothing was drawn
	const float *lse;           // (n) of the token's row, at temperature 1
	uint32_t rows;
	const uint32_t *ids;        // (n, rows) by descending logit
	const float *logits;        // (n, rows)
	const char *text;           // text_bytes of them: what is new and sure of the answer's text
	size_t text_bytes;
	bool last;                  // of this sample; only then the rest is filled
	int finish;                 // KD_FINISH_*
	int64_t stop_id;            // the token that ended it; -1 = none did
	int32_t stop;               // the string that did, an index into stops; -1 = none did
	uint32_t n_reused;          // positions of the prompt that the server knew
	uint64_t seed;              // given or drawn
};

// Blocking: `take` gets each piece as it arrives, in the calling thread, every sample's in order and its last one last; it must not use the
// client. Non-zero from it ends the generation: -ECANCELED. 0 when every sample is complete; an error of one of them is the call's.
int kd_generate(struct kd_client *client, const struct kd_generation *request, int (*take)(void *arg, const struct kd_piece *piece),
		void *arg, struct kd_error *err);

// A control resource, as over HTTP. A status of 400 or more is a success of the call. Free *ret_body with free(); it is NUL-terminated.
int kd_call(struct kd_client *client, const char *method, const char *path, const void *body, size_t n_bytes,
	    int *ret_status, char **ret_body, size_t *ret_n_bytes, struct kd_error *err);

// Rows of one sequence; arrays are row-major, NULL unless asked for. Views into the answer, the library's: later versions append fields.
struct kd_rows {
	uint32_t n_rows, first;             // row r is position first + r
	uint32_t n_tokens, top_k, n_temperatures, vocab_size;
	const uint32_t *tokens;             // (n_tokens)
	const float *temperatures;          // (n_temperatures) ascending
	const uint8_t *status;              // (n_rows) 0 = ok; else the row holds zeros. NULL when only spans or pooled features were asked
	const float *max_logit;             // (n_rows) these two with any signal of the vocabulary
	const float *lse;                   // (n_rows, n_temperatures)
	const uint32_t *n_top;              // (n_rows) ids in the row; NULL unless top_mass: then every row has top_k
	const uint32_t *ids;                // (n_rows, top_k) by descending logit, ties to the lower id; UINT32_MAX after the row's last
	const float *logits;                // (n_rows, top_k) raw
	const float *own_logit;             // (n_rows) NaN where no token follows, or keep lacks it
	const float *entropy;               // (n_rows) natural logarithm
	const float *max_prob, *sum_squares;// (n_rows)
	const uint32_t *argmax;             // (n_rows)
	const float *tail;                  // (n_rows) -INFINITY where nothing is outside
	uint32_t n_dense;                   // n_keep or vocab_size
	const float *dense;                 // (n_rows, n_dense) in the order of keep, or of ids
	uint32_t n_keep;
	const uint32_t *keep;               // (n_keep) ascending
	struct kd_lists gather;             // as asked
	const uint64_t *gather_starts;      // (n_rows + 1) row r's are gathered[gather_starts[r]] .. gathered[gather_starts[r + 1] - 1]
	const float *gathered;              // raw, in the order of the row's list: the one list, or list r
	const uint32_t *draw_starts;        // (n_rows + 1) likewise
	const uint32_t *draw_ids, *draw_counts;     // distinct ids, ascending in a row
	const float *draw_log_ratios;       // ln(p / proposal) of each; NULL when tau = 1: then it is 0, or with draws.tail the row's tail
	uint32_t n_spans;
	const struct kd_span *spans;
	const float *span_sums;             // (n_spans) NaN where a row is not finite
	uint32_t n_features, n_feature_rows;        // n_rows, or 1 when pooled
	const uint32_t *feature_widths;     // (n_features)
	const float *const *features;       // (n_features) each (n_feature_rows, width)
};

int kd_answer_rows(struct kd_answer *answer, const struct kd_rows **ret_rows, struct kd_error *err);    // -EBADMSG: damaged
const void *kd_answer_record(const struct kd_answer *answer, size_t *ret_n);     // the record's bytes (kdserved-record.5), checked
void kd_answer_key(const struct kd_answer *answer, char ret_key[65]);             // of teacher, tokens and question, hexadecimal
bool kd_answer_cached(const struct kd_answer *answer);                           // it came from the server's store
void kd_answer_free(struct kd_answer *answer);                                   // NULL is fine

// Rows of record bytes from elsewhere (a file, a store). They carry their own checksum and question.
int kd_answer_from_record(const void *bytes, size_t n, struct kd_answer **ret_answer, struct kd_error *err);

const char *kd_version(void);

#ifdef __cplusplus
}
static inline struct kd_options kd_options_init_(void) { struct kd_options o = kd_options(); o.size = sizeof o; return o; }
static inline struct kd_query kd_query_init_(void) { struct kd_query q = kd_query(); q.size = sizeof q; q.last = -1; return q; }
static inline struct kd_request kd_request_init_(void) { struct kd_request r = kd_request(); r.size = sizeof r; return r; }
static inline struct kd_generation kd_generation_init_(void)
{
	struct kd_generation g = {};
	g.size = sizeof g;
	g.n = 1;
	g.max_tokens = 16;
	g.temperature = g.top_p = g.typical_p = 1;
	return g;
}
#define KD_GENERATION_INIT kd_generation_init_()
#define KD_OPTIONS_INIT kd_options_init_()
#define KD_QUERY_INIT kd_query_init_()
#define KD_REQUEST_INIT kd_request_init_()
#else
#define KD_OPTIONS_INIT {.size = sizeof(struct kd_options)}
#define KD_QUERY_INIT {.size = sizeof(struct kd_query), .last = -1}             // nothing asked, of every row
#define KD_REQUEST_INIT {.size = sizeof(struct kd_request)}
#define KD_GENERATION_INIT {.size = sizeof(struct kd_generation), .n = 1, .max_tokens = 16, .temperature = 1, .top_p = 1, .typical_p = 1}
#endif
#endif
