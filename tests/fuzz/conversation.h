// SPDX-License-Identifier: Apache-2.0
// What a client of the binary door may expect: it looks at the bytes both sides sent, and aborts where the server said what the protocol
// does not allow (kdserved-protocol.7): an answer to a question not asked, a second one to the same sequence, an end before every sequence
// was answered, a frame that does not decode, anything at all after an error of the connection.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONVERSATION_MAX_ASKS 1024
#define CONVERSATION_MAX_BODY (1u << 20)

struct conversation_ask {
	uint64_t id;
	uint8_t kind;
	bool ended;
	uint32_t n, n_answered;          // sequences or samples; 0 = the question cannot be read, so it may only be refused
	uint64_t answered;               // a bit for each
};

struct conversation_bytes { uint8_t *data; size_t n, capacity; };

struct conversation {
	struct conversation_bytes sent, received;      // of frames that are not whole yet
	bool garbled;                    // the client sent what is no frame: the server can make no more of it
	bool welcome, failed;            // that came; an error of the connection came
	uint32_t n_pings;                // not answered yet
	struct conversation_ask asks[CONVERSATION_MAX_ASKS];
	size_t n_asks;
};

void conversation_init(struct conversation *c);
void conversation_done(struct conversation *c);
void conversation_sent(struct conversation *c, const uint8_t *bytes, size_t n);
void conversation_received(struct conversation *c, const uint8_t *bytes, size_t n);
size_t conversation_n_open(const struct conversation *c);      // questions that have not been answered to their end
