// SPDX-License-Identifier: Apache-2.0
// Blocking questions to the server itself: control resources and pings.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"
#include "common/cursor.h"

// Sends it and waits for its one event.
static int exchange(struct kd_client *client, struct prepared *m, const void *owner, struct queued **ret, struct error *err)
{
	struct waiter w = waiter_patient(client, WAIT_EVENT, owner);
	uint64_t id;
	pthread_mutex_lock(&client->lock);
	int r = prepared_send(client, m, m->pending->kind == PENDING_CALL, &id, err);
	if (!r)
		r = client_wait(client, &w, err);
	if (!r)
		*ret = queued_pop(client, owner);
	else
		pending_abandon(client, owner);
	pthread_mutex_unlock(&client->lock);
	prepared_done(m);
	return r;
}

static int prepare_call(const struct kd_client *client, const struct frame_call *call, struct prepared *m, struct error *err)
{
	struct writer count = writer_init(NULL, 0), w;
	frame_call_encode(call, &count);
	if (count.position > client->welcome.max_body_bytes)
		return error_set(err, ERROR_TOO_LARGE, "body", "the call has %zu bytes, the server takes %" PRIu32, count.position,
				 client->welcome.max_body_bytes);
	m->body = malloc(count.position);
	if (!m->body)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a call of %zu bytes", count.position);
	w = writer_init(m->body, count.position);
	frame_call_encode(call, &w);
	m->n = w.position;
	return 0;
}

int kd_call(struct kd_client *client, const char *method, const char *path, const void *body, size_t n_bytes,
	    int *ret_status, char **ret_body, size_t *ret_n_bytes, struct kd_error *err)
{
	struct error why = {0};
	struct queued *q = NULL;
	struct prepared m = {.kind = FRAME_CALL};
	struct frame_call call = {.body = (char *)body, .body_bytes = n_bytes};
	if (strlen(method) >= sizeof call.method || strlen(path) >= sizeof call.path)
		return report(err, &why, error_set(&why, ERROR_INVALID, "path", "method or path is too long"));
	strcpy(call.method, method);
	strcpy(call.path, path);
	m.pending = pending_new(PENDING_CALL, &q, &why);
	int r = m.pending ? prepare_call(client, &call, &m, &why) : -ENOMEM;
	if (!r)
		r = exchange(client, &m, &q, &q, &why);
	assert(r || q);        // what was waited for is there
	prepared_done(&m);
	if (!r && q->event.kind == KD_EVENT_REQUEST_FAILED)
		r = error_set(&why, error_from_name(q->event.error.code), q->event.error.field, "%s", q->event.error.message);
	if (!r) {
		*ret_status = (int)q->reply.status;
		*ret_body = q->reply.body;
		*ret_n_bytes = q->reply.body_bytes;
		q->reply.body = NULL;
	}
	queued_free(q);
	return r ? report(err, &why, r) : 0;
}

int kd_ping(struct kd_client *client, double *ret_ms, struct kd_error *err)
{
	struct error why = {0};
	struct queued *q = NULL;
	struct prepared m = {.kind = FRAME_PING, .pending = pending_new(PENDING_PING, &q, &why)};
	struct timespec begin, end;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	int r = m.pending ? exchange(client, &m, &q, &q, &why) : -ENOMEM;
	clock_gettime(CLOCK_MONOTONIC, &end);
	queued_free(q);
	if (!r && ret_ms)
		*ret_ms = (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) / 1e6;
	return r ? report(err, &why, r) : 0;
}
