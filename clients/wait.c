// SPDX-License-Identifier: Apache-2.0
// Waiting, and taking turns at reading. Everything that blocks goes through client_wait.
//
// Of the threads that wait, one reads for all (and writes what others have queued); the others sleep until their event is there or the
// turn is theirs. Two rules keep it alive: nobody sleeps while nobody reads, and whoever leaves while others wait wakes the first of them.
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "clients/client.h"

static bool is_satisfied(const struct kd_client *client, const struct waiter *w)
{
	switch (w->kind) {
	case WAIT_EVENT: return queued_any(client, w->owner);
	case WAIT_CREDIT: return pending_has_credit(client);
	case WAIT_FLUSH: return client->connection.n_sent >= w->n_sent || !connection_has_output(&client->connection);
	}
	return true;
}

static int64_t waiter_deadline(const struct kd_client *client, const struct waiter *w)
{
	if (w->timeout_ms < 0)
		return INT64_MAX;
	return (w->patient && client->heard_ms > w->began_ms ? client->heard_ms : w->began_ms) + w->timeout_ms;
}

struct waiter waiter_patient(const struct kd_client *client, enum wait_kind kind, const void *owner)
{
	return (struct waiter){.kind = kind, .owner = owner, .timeout_ms = client->timeout_ms, .patient = true};
}

void client_wake(struct kd_client *client, enum wait_kind kind, const void *owner)
{
	for (struct waiter *w = client->waiters; w; w = w->next)
		if (w->kind == kind && (kind != WAIT_EVENT || w->owner == owner))
			pthread_cond_signal(&w->woken);
}

// The reader looks again at what there is to write.
static void wake_reader(struct kd_client *client)
{
	const uint64_t one = 1;
	if (client->reading && !client->reader_woken)
		client->reader_woken = write(client->wake_fd, &one, sizeof one) == sizeof one;
}

int client_lose(struct kd_client *client, const struct error *err, int r)
{
	if (!client->broken.code)
		client->broken = *err;
	for (struct waiter *w = client->waiters; w; w = w->next)
		pthread_cond_signal(&w->woken);
	pthread_cond_signal(&client->callbacks.work);
	wake_reader(client);
	return r;
}

// The turn has ended: what happened meanwhile.
static void reader_returned(struct kd_client *client, bool progress)
{
	uint64_t n;
	client->reading = false;
	if (client->reader_woken)
		client->reader_woken = read(client->wake_fd, &n, sizeof n) != sizeof n;
	if (progress)
		client->heard_ms = clock_ms();
}

// What the socket takes now; the rest is the reader's, whoever that is or will be.
int client_send(struct kd_client *client, struct error *err)
{
	bool progress = false;
	int r = connection_write(&client->connection, &progress, err);
	if (r)
		return client_lose(client, err, r);
	bool left = connection_has_output(&client->connection);
	if (left)
		wake_reader(client);
	if (progress || !left)
		client_wake(client, WAIT_FLUSH, NULL);
	return 0;
}

// One turn: a frame is read and delivered, or, when none is there, awaited, unless what could be sent was all that w waits for. 0, or the
// reason why the connection is lost; *ret_late is set when the deadline passed in vain.
static int read_once(struct kd_client *client, const struct waiter *w, int64_t deadline, bool *ret_late, struct error *err)
{
	struct connection *c = &client->connection;
	struct received m = {0};
	bool progress = false;
	int r = client_send(client, err);
	if (r || is_satisfied(client, w))
		return r;
	short events = connection_has_output(c) ? POLLIN | POLLOUT : POLLIN;
	client->reading = true;
	pthread_mutex_unlock(&client->lock);
	r = connection_read(c, &progress, err);
	if (r == 1) {
		r = received_decode(client, &m, err);
	} else if (r == 0 && !progress) {
		r = connection_poll(c, events, client->wake_fd, deadline);
		*ret_late = r == -ETIMEDOUT;
		if (r)
			r = *ret_late ? 0 : error_system(err, r, NULL, "cannot wait for the server");
	}
	pthread_mutex_lock(&client->lock);
	reader_returned(client, progress);
	if (r == 0 && m.frame.kind)
		r = received_deliver(client, &m, err);
	received_done(&m);
	return r ? client_lose(client, err, r) : 0;
}

static void sleep_until(struct kd_client *client, struct waiter *w, int64_t deadline, bool *ret_late)
{
	struct timespec t = {.tv_sec = deadline / 1000, .tv_nsec = deadline % 1000 * 1000000};
	if (deadline == INT64_MAX)
		pthread_cond_wait(&w->woken, &client->lock);
	else
		*ret_late = pthread_cond_timedwait(&w->woken, &client->lock, &t) == ETIMEDOUT;
}

static void waiter_add(struct kd_client *client, struct waiter *w)
{
	pthread_condattr_t monotonic;
	struct waiter **end = &client->waiters;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&w->woken, &monotonic);
	pthread_condattr_destroy(&monotonic);
	w->began_ms = clock_ms();
	w->next = NULL;
	while (*end)
		end = &(*end)->next;
	*end = w;
	client->n_credit_waiters += w->kind == WAIT_CREDIT;
}

static void waiter_remove(struct kd_client *client, struct waiter *w)
{
	struct waiter **at = &client->waiters;
	while (*at != w)
		at = &(*at)->next;
	*at = w->next;
	client->n_credit_waiters -= w->kind == WAIT_CREDIT;
	pthread_cond_destroy(&w->woken);
	if (!client->reading && client->waiters)
		pthread_cond_signal(&client->waiters->woken);
}

// Whether waiting can still bring anything.
static int check_hope(const struct kd_client *client, const struct waiter *w, struct error *err)
{
	if (client->broken.code) {
		*err = client->broken;
		return error_errno(err->code);
	}
	if (w->kind == WAIT_EVENT && !pending_any(client, w->owner)) {
		error_set(err, ERROR_NOT_FOUND, NULL, "nothing is in flight");
		return -ENODATA;
	}
	return 0;
}

int client_wait(struct kd_client *client, struct waiter *w, struct error *err)
{
	int r = 0;
	waiter_add(client, w);
	while (!r && !is_satisfied(client, w)) {
		bool late = false;
		int64_t deadline = waiter_deadline(client, w);
		r = check_hope(client, w, err);
		if (!r && client->reading)
			sleep_until(client, w, deadline, &late);
		else if (!r)
			r = read_once(client, w, deadline, &late, err);
		if (!r && late && waiter_deadline(client, w) <= clock_ms() && !is_satisfied(client, w))
			r = error_set(err, ERROR_DEADLINE, NULL, "the server did not answer in time");
	}
	waiter_remove(client, w);
	return r;
}

int client_flush(struct kd_client *client, struct error *err)
{
	struct waiter w = waiter_patient(client, WAIT_FLUSH, NULL);
	w.n_sent = connection_queued(&client->connection);
	int r = client_send(client, err);
	if (r || is_satisfied(client, &w))
		return r;
	r = client_wait(client, &w, err);
	return r == -ETIMEDOUT ? client_lose(client, err, r) : r;
}
