// SPDX-License-Identifier: Apache-2.0
// What is in flight, and the events nobody has taken yet. All of it with the client's lock held.
#include <stdlib.h>

#include "clients/client.h"

struct pending *pending_new(enum pending_kind kind, const void *owner, struct error *err)
{
	struct pending *p = calloc(1, sizeof *p);
	if (!p) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a request");
		return NULL;
	}
	p->kind = kind;
	p->owner = owner;
	return p;
}

void pending_free(struct pending *p)
{
	if (!p)
		return;
	questions_unref(p->questions);
	free(p->answered);
	free(p->n_tokens);
	queued_free(p->failure);
	free(p);
}

int pending_set_callback(struct pending *p, kd_callback *callback, void *arg, struct error *err)
{
	p->callback = callback;
	p->arg = arg;
	p->failure = queued_new(p, KD_EVENT_REQUEST_FAILED, 0);
	return p->failure ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory for a request");
}

void pending_fail(struct kd_client *client, struct pending *p, const struct error *why)
{
	struct queued *q = p->failure;
	p->failure = NULL;
	q->event.id = p->id;
	report(&q->event.error, why, 0);
	queued_push(client, p, q);
	p->abandoned = true;
	if (!client->broken.code)
		(void)connection_append(&client->connection, FRAME_CANCEL, p->id, NULL, 0, NULL);    // else the server works in vain
}

bool pending_has_credit(const struct kd_client *client)
{
	return client->n_pending < client->welcome.credits;
}

void pending_start(struct kd_client *client, struct pending *p)
{
	p->id = ++client->last_id;
	p->next = client->pending;
	client->pending = p;
	client->n_pending += p->kind != PENDING_PING;
}

void pending_end(struct kd_client *client, struct pending *p)
{
	struct pending **at = &client->pending;
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	if (p->kind != PENDING_PING) {
		client->n_pending--;
		client_wake(client, WAIT_CREDIT, NULL);
	}
	pending_free(p);
}

struct pending *pending_find(struct kd_client *client, uint64_t id)
{
	struct pending *p = client->pending;
	while (p && p->id != id)
		p = p->next;
	return p;
}

bool pending_any(const struct kd_client *client, const void *owner)
{
	for (const struct pending *p = client->pending; p; p = p->next)
		if (p->owner == owner && !p->abandoned)
			return true;
	return false;
}

void pending_abandon(struct kd_client *client, const void *owner)
{
	struct error why = {0};
	for (struct pending *p = client->pending; p; p = p->next) {
		if (p->owner != owner || p->abandoned)
			continue;
		p->abandoned = true;
		// Without memory for it the server works in vain; nothing is wrong otherwise.
		if ((p->kind == PENDING_SCORE || p->kind == PENDING_GENERATE) && !client->broken.code)
			(void)connection_append(&client->connection, FRAME_CANCEL, p->id, NULL, 0, NULL);
	}
	if (!client->broken.code)
		(void)client_send(client, &why);     // the caller has a reason to fail already
	for (struct queued *q; (q = queued_pop(client, owner));)
		queued_free(q);
}

struct queued *queued_new(const struct pending *p, enum kd_event_kind kind, uint32_t index)
{
	struct queued *q = calloc(1, sizeof *q);
	if (!q)
		return NULL;
	q->owner = p->owner;
	q->callback = p->callback;
	q->arg = p->arg;
	q->event.kind = kind;
	q->event.id = p->id;
	q->event.index = p->base + index;
	return q;
}

struct queued *queued_free(struct queued *q)
{
	if (q) {
		kd_answer_free(q->event.answer);
		frame_reply_done(&q->reply);
		frame_tokens_done(&q->tokens);
		free(q->text);
		free(q);
	}
	return NULL;
}

void queued_push(struct kd_client *client, const struct pending *p, struct queued *q)
{
	if (p->abandoned) {
		queued_free(q);
		return;
	}
	*client->events_end = q;
	client->events_end = &q->next;
	client_wake(client, WAIT_EVENT, q->owner);
}

struct queued *queued_pop(struct kd_client *client, const void *owner)
{
	for (struct queued **at = &client->events; *at; at = &(*at)->next) {
		struct queued *q = *at;
		if (q->owner != owner)
			continue;
		*at = q->next;
		if (!*at)
			client->events_end = at;
		q->next = NULL;
		return q;
	}
	return NULL;
}

bool queued_any(const struct kd_client *client, const void *owner)
{
	for (const struct queued *q = client->events; q; q = q->next)
		if (q->owner == owner)
			return true;
	return false;
}
