// SPDX-License-Identifier: Apache-2.0
// Items through the teacher, many requests in flight, handed back in the order they were read. With patience a server that goes away is
// waited for and asked again for what it did not answer, and what is wrong with one sequence does not end the rest.
#pragma once

#include <signal.h>

#include "clients/kdctl/score.h"

struct chunk;

struct flow {
	struct kdctl *k;                 // connected; a flow with patience connects it anew
	const struct score_options *options;
	int (*next)(void *arg, struct item **ret);     // the next item to ask for, the flow's then; NULL at the end. Status
	int (*take)(void *arg, struct item *i);        // answered, or refused (only with patience); still the flow's. Status
	void *arg;
	uint64_t patience_ms;            // without any answer for so long: give up. 0 = whatever fails ends it
	volatile sig_atomic_t *stop;     // set: nothing more is read or asked; NULL = never
	// the flow's own
	struct chunk *chunks, **end;     // in the order of the input; what is done at the front leaves
	uint32_t n_chunks, n_in_flight, max_in_flight, batch;
	char teacher[65];                // that must answer
	uint64_t good_ms, heard_ms;      // when something last went well, was heard
	uint64_t retry_ms;               // not before this time
	uint32_t pause_ms;               // before the next retry but this
	bool complained;                 // that the server does not answer
	bool over;                       // all that was read has left, and there is no more
};

void flow_start(struct flow *f);                 // once the fields above are set
// Reads ahead, asks, waits for one event for a moment, hands on what is complete. Again until over, or a status.
int flow_step(struct flow *f);
void flow_done(struct flow *f);
