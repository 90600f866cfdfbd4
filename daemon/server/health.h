// SPDX-License-Identifier: Apache-2.0
// Whether questions are taken, and what is not as it should be although they are: for /ready, /v1/status, /metrics and the status text.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

struct buffer;
struct service;

enum health_state {
	HEALTH_DEVICE,         // device = auto found no usable GPU: the CPU computes
	HEALTH_STORE,          // the disk refuses answers, or is mounted read-only: they are given, not kept
	HEALTH_SPACE,          // less than a twentieth of the store's file system, and than 1 GiB, is free
	HEALTH_CANARY,         // the known answer could not be kept beside the store: the next start has nothing to hold its own against
	HEALTH_CERTIFICATE,    // that of the doors, or one sent with it, has expired: clients that look refuse it
	N_HEALTH_STATES
};

struct health {
	bool ready;
	struct error why;                          // not ready
	bool degraded[N_HEALTH_STATES];
};

void health_read(struct service *s, struct health *ret);
const char *health_name(enum health_state state);
bool health_is_degraded(const struct health *h);                 // in any way
void health_list(struct buffer *b, const struct health *h);      // ["store",...]
#define HEALTH_TEXT_BYTES 512
// One line for people: "Serving NAME on cuda", "Serving NAME on cpu; degraded: device, store", or why not.
void health_text(struct service *s, char ret_text[HEALTH_TEXT_BYTES]);
