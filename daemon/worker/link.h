// SPDX-License-Identifier: Apache-2.0
// The connection to the teacher, with patience: a server that goes away is waited for with growing pauses, and must be the same teacher
// when it comes back. One thread at a time.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/kdclient.h"
#include "common/query.h"

struct error;

#define LINK_MODEL_VALUES 65536        // of a server's /v1/model: some hundred teachers

struct link {
	const char *address, *token;           // the owner's
	const char *ca, *server_name;          // likewise; of an address with tls, as in struct kd_options
	const char *teacher_name;              // one of the server's teachers, by name or fingerprint; NULL = its first
	const char *teacher_id;                // fingerprint it must have; NULL = any
	bool masked;                           // it must name masked tokens; else the ones that follow
	uint64_t patience_ms;                  // without any answer for this long: give up
	const atomic_bool *stop, *closing;     // either set: calls return -ECANCELED soon
	struct kd_client *client;              // NULL = not connected
	struct kd_server server;               // what the first welcome said; teacher empty before
	struct content_id teacher;
	atomic_uint_fast64_t n_reconnects;
	uint64_t answered_at_ms;               // when something last went well
	uint32_t backoff_ms;
	bool complained;                       // that the server does not answer
};

// Set address, token, ca, server_name, teacher_name, teacher_id, patience_ms, stop and closing first. Waits for the server if need be.
int link_open(struct link *l, struct error *err);
void link_close(struct link *l);
bool link_ending(const struct link *l);

// A control resource: its body, NUL-terminated, the caller frees.
int link_get(struct link *l, const char *path, char **ret_body, size_t *ret_n, struct error *err);

// Asks once for n sequences (at most link_room()); `take` gets each answer as it arrives. 0 when all n were taken.
typedef int link_take_fn(void *arg, uint32_t index, const struct kd_answer *answer, struct error *err);
int link_ask(struct link *l, const struct query *q, const struct kd_sequence *sequences, uint32_t n, link_take_fn *take, void *arg,
	     struct error *err);
// Asks once for what the teacher goes on with. `take` as in kd_generate.
int link_generate(struct link *l, const struct kd_generation *request, int (*take)(void *arg, const struct kd_piece *piece), void *arg,
		  struct error *err);
uint32_t link_room(const struct link *l);

void link_begin(struct link *l);               // patience counts from here
void link_good(struct link *l);                // something went well
// After a failure r with its reason in *err: closes the connection and pauses. 0 = try again; else the reason to give up.
int link_wait(struct link *l, int r, struct error *err);
void link_pause(const struct link *l, uint64_t ms);
