// SPDX-License-Identifier: Apache-2.0
// Private to libkdclient: a connection with its requests in flight and the events not yet taken.
#pragma once

#include "clients/connection.h"
#include "clients/kdclient.h"
#include "common/error.h"
#include "common/record.h"

// A request in flight. `owner` tells who takes its events: NULL = kd_next, else the blocking call that waits for it.
struct pending {
	uint64_t id;
	const void *owner;
	bool is_call;
	bool abandoned;                  // nobody wants its events any more
	uint32_t base;                   // index of its first sequence in a split kd_score
	uint32_t n_sequences, n_answered;
	struct content_id *keys;         // (n_sequences) of the records that answer it: any other is refused
	bool *answered;                  // (n_sequences)
	struct pending *next;
};

struct queued {
	struct kd_event event;
	const void *owner;
	struct frame_reply reply;        // of a call
	struct queued *next;
};

struct kd_client {
	struct connection connection;
	struct kd_server server;
	struct frame_welcome welcome;
	int timeout_ms;                  // negative = none
	bool draining;
	struct error broken;             // code set: the connection is lost, and why
	uint64_t last_id, ping_id;
	bool ponged;
	unsigned n_pongs;                // owed since the output was last empty
	struct pending *pending;
	uint32_t n_pending;
	struct queued *events, **events_end;
};

struct kd_answer {
	struct record *record;
	struct record_rows *decoded;     // NULL until asked for
	struct kd_rows view;
	bool cached;
};

int report(struct kd_error *to, const struct error *from, int r);       // returns r
int answer_new(const void *record, size_t n, bool cached, struct kd_answer **ret, struct error *err);

struct pending *pending_new(struct kd_client *client, const void *owner, struct error *err);
void pending_free(struct kd_client *client, struct pending *p);          // takes it off the list
void pending_abandon(struct kd_client *client, const void *owner);       // every request of the owner, with its events
struct queued *queued_free(struct queued *q);

// The complete frame of the connection: becomes events. An error loses the connection.
int receive_frame(struct kd_client *client, struct error *err);
// Sends what is queued; takes what arrives meanwhile.
int client_flush(struct kd_client *client, struct error *err);
// The first event of the owner. patient: deadline is the longest silence from now, else a point in time.
int client_wait(struct kd_client *client, const void *owner, int timeout_ms, bool patient, struct queued **ret_event, struct error *err);
// Until the server owes us one request less than it allows, whoever's requests they are.
int client_wait_credit(struct kd_client *client, struct error *err);
