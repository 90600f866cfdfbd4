// SPDX-License-Identifier: Apache-2.0
// Shared by http.c (thread, connections, deadlines), http_request.c (one request from headers to answer), http_reply.c (from
// there to bytes) and http_gate.c (strict headers).
// Everything here belongs to the http thread, but for what is at the desk (desk.h).
#pragma once

#include <microhttpd.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/buffer.h"
#include "daemon/server/control.h"
#include "daemon/server/desk.h"
#include "daemon/server/exchange.h"
#include "daemon/server/http.h"
#include "daemon/server/service.h"

struct http_connection {
	struct http_connection *previous, *next;
	int fd;
	struct tls *tls;                   // a hold of what it shows; NULL = plain
	uint64_t began_ms;
	uint64_t deadline_ms;              // then it is shut down; 0 = none
	bool asked;                        // a request line was read on it
	bool known;                        // a request on it was let in: who rests on it has a token, or needs none
	bool left;                         // the client sends no more: it has closed, or shut its side
	struct http_request *request;      // the one under way, or NULL
};

enum http_state {
	HTTP_HEADERS,                      // the request line was read
	HTTP_BODY,                         // being collected (or dropped, when `refused`)
	HTTP_WAITING,                      // suspended: the desk or the service has it, no byte of the reply is out
	HTTP_REPLYING,
};

enum http_work {
	HTTP_START,                        // body to exchange
	HTTP_ENCODE,                       // the next piece of an exchange's reply
	HTTP_CALL,                         // any other resource
};

struct http_target { const char *begin, *end; };   // end NULL: it holds a character that no target has

struct http_request {
	struct desk_job job;               // first: a job's pointer is a request's
	enum http_work work;
	bool at_desk;                      // the desk has it: exchange, body and reply are the desk's
	bool cancelled;                    // meanwhile
	struct queue_item *parked, **parked_end;       // items that came back meanwhile
	int result;                        // of the work
	struct error fault;
	struct http *http;
	struct http_connection *connection;
	struct MHD_Connection *mhd;
	enum http_state state;
	bool refused;                      // `reply` holds the refusal already; the body is read and dropped
	bool must_close;
	bool at_once;                      // the reply does not wait for the body
	bool unauthorized;
	enum error_code refused_code;
	struct principal *principal;       // who asks, logged in; NULL on a resource that is public
	bool escaped;                      // the raw target holds '%'
	struct http_target target;         // the raw one, where libmicrohttpd has it
	const char *method, *path;         // libmicrohttpd's, once the body is there
	bool suspended;
	uint64_t max_json;                 // when it began: a smaller limit is for those that come later
	struct buffer body;
	uint64_t held;                     // service_hold(): of the body; once that is read, of a call's reply
	struct control_reply reply;
	const struct exchange_kind *kind;  // of the path; NULL = control answers
	enum reply_errors errors;          // their shape on this path
	struct exchange *exchange;         // once the service has it
	struct buffer out;                 // piece of the reply being sent
	size_t n_sent;
};

struct http {
	struct http_options options;
	bool encrypted;
	struct door_settings settings;     // of this turn of the loop
	struct service *service;
	struct MHD_Daemon *daemon;
	struct http_connection *connections;
	uint32_t n_waiting;                // items the service has
	uint32_t n_exchanges;              // accepted, their reply not ended
	uint32_t n_requests;               // requests between their first line and the end of their reply
	uint64_t n_ended;                  // their ends so far
	bool finishing;                    // each connection closes behind its reply
	struct queue *returned;            // items that came back, from any thread
	int epoll_fd, returned_fd, stop_fd;
	struct desk *desk;                 // its jobs are requests
	bool waited;                       // at the last look somebody waited outside, though there was room
};

// Callbacks of libmicrohttpd, defined in http_request.c.
void *http_request_begin(void *arg, const char *target, struct MHD_Connection *mhd);
enum MHD_Result http_request_handle(void *arg, struct MHD_Connection *mhd, const char *path, const char *method, const char *version,
				    const char *data, size_t *n_data, void **context);
void http_request_end(void *arg, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode why);

// An item came back. When it was the last, the connection goes on.
struct request_item;
void http_request_returned(struct request_item *item);
void http_request_worked(struct http_request *q);      // it is back from the desk
void http_request_cancel(struct http_request *q);      // nobody waits for the answer any more

// What http_request.c and http_reply.c have of each other.
void http_request_set_deadline(struct http_request *q, uint64_t ms);
void http_request_refuse(struct http_request *q, int status, const struct error *e);
void http_request_suspend(struct http_request *q);     // until an item or the work comes back
void http_request_give(struct http_request *q, enum http_work work, uint64_t n_bytes);     // to the desk
enum MHD_Result http_reply_send(struct http_request *q);                   // q->reply
enum MHD_Result http_reply_send_exchange(struct http_request *q);
int http_reply_encode(struct http_request *q);         // the next piece of the answer, in q->out

// In how many ms the connection is to be shut down unless it is told otherwise; 0 = never. One that waits for bytes from a client who
// left is not given long.
void http_set_deadline(struct http_connection *c, uint64_t ms, bool reading);

// Of a request, where and as it was received: libmicrohttpd takes it apart in place.
struct http_target http_gate_target(const char *target);
// Checks what 0.9.75 lets pass although it lets two readers of one byte stream disagree. 0, or -errno with the reason.
int http_gate_check(struct MHD_Connection *mhd, const char *method, struct http_target target, const char *version, struct error *err);
// What the headers say of the body: ret_n the declared length (0 when chunked), ret_chunked.
int http_gate_body(struct MHD_Connection *mhd, uint64_t *ret_n, bool *ret_chunked, struct error *err);
bool http_gate_is_json(struct MHD_Connection *mhd);
// The secret of "Authorization: Bearer SECRET", libmicrohttpd's; NULL without one. ERROR_UNAUTHORIZED when it is anything else.
int http_gate_secret(struct MHD_Connection *mhd, const char **ret_secret, struct error *err);
// It is not asked for again: what libmicrohttpd frees without a look is in core dumps. NULL is fine.
void http_gate_forget(const char *secret);
