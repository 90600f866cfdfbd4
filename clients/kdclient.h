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

struct kd_options {
	const char *address;    // "unix:PATH" or "tcp:HOST:PORT" (also "tcp:[V6]:PORT")
	const char *token;      // bearer token; NULL = none
	const char *teacher;    // fingerprint that must be served, 64 hexadecimal digits; NULL = any
	int connect_timeout_ms; // to be connected and welcomed; 0 = 10 s, negative = no limit
	int timeout_ms;         // longest silence in a blocking call; 0 = 60 s, negative = no limit
	uint32_t max_body_bytes;// largest answer accepted; 0 = 256 MiB
};

struct kd_server {              // what the server said in its welcome
	char teacher[65];       // fingerprint of weights, tokenizer and numeric format, hexadecimal
	uint32_t vocab_size;
	uint32_t max_tokens;    // of one sequence
	uint32_t max_top_k;
	uint32_t max_sequences; // of one request
	uint32_t max_body_bytes;
	uint32_t credits;       // requests that may be in flight
};

int kd_open(const struct kd_options *options, struct kd_client **ret_client, struct kd_error *err);
void kd_close(struct kd_client *client);                         // NULL is fine; answers stay valid
const struct kd_server *kd_server(const struct kd_client *client);
bool kd_is_draining(const struct kd_client *client);             // the server said goaway: open a new connection for new requests
int kd_fd(const struct kd_client *client);                       // readable when kd_next has something to do; do not read it
int kd_ping(struct kd_client *client, double *ret_ms, struct kd_error *err);    // ret_ms may be NULL

// A question. Row i is what the teacher predicts after tokens 0..i. At least one of top_k, own, entropy, temperatures.
struct kd_query {
	uint32_t top_k;             // ids wanted per row; 0 = none
	bool own;                   // logit of the token that really follows
	bool entropy;
	bool f16;                   // logits as binary16 differences to the row's maximum: 2 bytes an entry instead of 4
	uint32_t n_temperatures;
	const float *temperatures;  // of the lse values; none = at 1
	int32_t first, last;        // rows wanted, inclusive; negative counts from the end
};
#define KD_QUERY_INIT {.first = 0, .last = -1}

struct kd_sequence {
	const uint32_t *tokens;
	uint32_t n_tokens;
};

#define KD_DURABLE 1u               // answer when the record is on the server's disk
#define KD_NO_STORE 2u              // neither look in the server's store nor add to it
#define KD_WAIT 0x80000000u         // kd_submit and kd_submit_callback: wait for a credit instead of failing with -EAGAIN

struct kd_request {
	struct kd_query query;
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
};

// The same, told by callback instead of kd_next: it gets each event of the request, last one KD_EVENT_DONE or KD_EVENT_REQUEST_FAILED,
// exactly one of them for each call that succeeded. The client's own thread calls, one event at a time. A callback may use the client
// (also to submit), but not close it; event->answer is its to free. kd_close ends what is left with "cancelled" before it returns.
int kd_submit_callback(struct kd_client *client, const struct kd_request *request, void (*callback)(void *arg, struct kd_event *event),
		       void *arg, uint64_t *ret_id, struct kd_error *err);

// The next event of any request of kd_submit, in order of arrival. Waits up to timeout_ms (0 = only what is there, negative = the
// connection's timeout). -ETIMEDOUT: nothing yet; -ENODATA: nothing is in flight; any other: the connection is lost.
int kd_next(struct kd_client *client, int timeout_ms, struct kd_event *ret_event, struct kd_error *err);

// A control resource, as over HTTP. A status of 400 or more is a success of the call. Free *ret_body with free(); it is NUL-terminated.
int kd_call(struct kd_client *client, const char *method, const char *path, const void *body, size_t n_bytes,
	    int *ret_status, char **ret_body, size_t *ret_n_bytes, struct kd_error *err);

// Rows of one sequence; arrays are row-major. Views into the answer.
struct kd_rows {
	uint32_t n_rows, first;             // row r is position first + r
	uint32_t n_tokens, top_k, n_temperatures, vocab_size;
	const uint32_t *tokens;             // (n_tokens)
	const float *temperatures;          // (n_temperatures) ascending
	const uint8_t *status;              // (n_rows) 0 = ok; else the row holds zeros
	const float *max_logit;             // (n_rows)
	const float *lse;                   // (n_rows, n_temperatures)
	const uint32_t *ids;                // (n_rows, top_k) by descending logit, ties to the lower id; NULL when top_k = 0
	const float *logits;                // (n_rows, top_k) raw
	const float *own_logit;             // (n_rows) NaN where no token follows; NULL unless asked
	const float *entropy;               // (n_rows) natural logarithm; NULL unless asked
};

int kd_answer_rows(struct kd_answer *answer, const struct kd_rows **ret_rows, struct kd_error *err);    // -EBADMSG: damaged
const void *kd_answer_record(const struct kd_answer *answer, size_t *ret_n);     // the record's bytes (kdserved-record.5), checked
bool kd_answer_cached(const struct kd_answer *answer);                           // it came from the server's store
void kd_answer_free(struct kd_answer *answer);                                   // NULL is fine

// Rows of record bytes from elsewhere (a file, a store). They carry their own checksum and question.
int kd_answer_from_record(const void *bytes, size_t n, struct kd_answer **ret_answer, struct kd_error *err);

const char *kd_version(void);

#ifdef __cplusplus
}
#endif
#endif
