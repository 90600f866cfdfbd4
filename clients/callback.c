// SPDX-License-Identifier: Apache-2.0
// The thread that calls back. It takes the events of requests submitted with a callback like any other thread that waits, and sees to
// it that each such request ends with exactly one last event, whatever becomes of the connection.
#include <errno.h>
#include <signal.h>

#include "clients/client.h"

// Every request that still waits for events fails: a lost connection, silence, or kd_close.
static void fail_all(struct kd_client *client, const struct error *why)
{
	struct error ignored;
	for (struct pending *p = client->pending; p; p = p->next)
		if (p->owner == &client->callbacks && !p->abandoned)
			pending_fail(client, p, why);
	if (!client->broken.code)
		(void)client_send(client, &ignored);
}

// The next event for a callback; NULL at the end.
static struct queued *next_event(struct kd_client *client)
{
	for (;;) {
		const void *owner = &client->callbacks;
		struct error why = {0};
		struct waiter w = waiter_patient(client, WAIT_EVENT, owner);
		if (!queued_any(client, owner) && !pending_any(client, owner)) {
			if (client->callbacks.closing)
				return NULL;
			pthread_cond_wait(&client->callbacks.work, &client->lock);
			continue;
		}
		int r = client_wait(client, &w, &why);
		if (r == 0)
			return queued_pop(client, owner);
		if (r != -ENODATA)
			fail_all(client, &why);
	}
}

static void *callbacks_loop(void *arg)
{
	struct kd_client *client = arg;
	struct queued *q;
	pthread_mutex_lock(&client->lock);
	while ((q = next_event(client))) {
		pthread_mutex_unlock(&client->lock);
		q->callback(q->arg, &q->event);
		q->event.answer = NULL;      // it was the callback's to free
		queued_free(q);
		pthread_mutex_lock(&client->lock);
	}
	pthread_mutex_unlock(&client->lock);
	return NULL;
}

int callbacks_start(struct kd_client *client, struct error *err)
{
	struct callbacks *c = &client->callbacks;
	sigset_t all, before;
	if (c->started)
		return 0;
	// The program's signals are for its own threads.
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int r = pthread_create(&c->thread, NULL, callbacks_loop, client);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r)
		return error_system(err, r, NULL, "cannot start the thread of callbacks");
	c->started = true;
	return 0;
}

void callbacks_wake(struct kd_client *client)
{
	pthread_cond_signal(&client->callbacks.work);
}

void callbacks_stop(struct kd_client *client)
{
	struct error why = {0};
	if (!client->callbacks.started)
		return;
	error_set(&why, ERROR_CANCELLED, NULL, "the connection was closed by its owner");
	pthread_mutex_lock(&client->lock);
	client->callbacks.closing = true;
	client_lose(client, &why, 0);
	pthread_mutex_unlock(&client->lock);
	pthread_join(client->callbacks.thread, NULL);
}
