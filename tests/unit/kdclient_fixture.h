// SPDX-License-Identifier: Apache-2.0
// What the tests of libkdclient share: sequences to ask about, a connection to a fake server, what its answers must be.
#pragma once

#include "clients/kdclient.h"
#include "tests/unit/fake_server.h"

#define N_KDCLIENT_SEQUENCES 9
extern const struct kd_sequence kdclient_sequences[N_KDCLIENT_SEQUENCES];

extern const struct kd_query kdclient_query;
struct kd_request kdclient_ask(uint32_t n);                          // top 3 and own of the first n sequences
struct kd_client *kdclient_connect(struct fake_server *s);           // opens the server too
void kdclient_close(struct fake_server *s, struct kd_client *client);
void kdclient_check_answer(struct kd_answer *answer, uint32_t i);    // to sequence i

// For play: every SCORE answered fully and in order, every PING too.
void kdclient_answer_all(struct fake_server *s);
struct frame fake_server_read_score(struct fake_server *s, struct frame_score *ret);
