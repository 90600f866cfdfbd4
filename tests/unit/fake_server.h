// SPDX-License-Identifier: Apache-2.0
// A server of the binary protocol that does exactly what a test tells it, on a Unix socket, in a thread of the test.
#pragma once

#include <pthread.h>

#include "common/frame.h"
#include "common/record.h"

struct fake_server {
	char address[128];                       // "unix:..."
	void (*play)(struct fake_server *s);     // after the welcome; the connection is closed when it returns
	bool silent;                             // play at once, without reading hello or saying welcome
	struct frame_welcome welcome;
	struct frame_hello hello;                // what the client said
	bool whole_records;                      // although short ones are asked for
	size_t piece;                            // bytes per write; 0 = all at once
	int fd;
	// the rest is private
	char directory[64];
	int listener;
	pthread_t thread;
};

void fake_server_open(struct fake_server *s);
void fake_server_close(struct fake_server *s);        // waits for play to end

// For play. Reading ends the thread's part quietly (returns kind 0) when the client has gone.
struct frame fake_server_read(struct fake_server *s, uint8_t **ret_body);
void fake_server_write(struct fake_server *s, const void *bytes, size_t n);
void fake_server_send(struct fake_server *s, uint8_t kind, uint64_t id, const void *body, size_t n);
void fake_server_send_answer(struct fake_server *s, uint64_t id, const struct frame_score *score, uint32_t index, uint32_t as_index);
void fake_server_send_error(struct fake_server *s, uint64_t id, uint32_t index, enum error_code code, const char *field,
			    const char *message);
struct record *fake_server_record(struct fake_server *s, const struct frame_score *score, uint32_t index);
