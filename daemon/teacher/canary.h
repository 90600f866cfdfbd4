// SPDX-License-Identifier: Apache-2.0
// A question whose answer is known, put to every resident model before the first client's and again while nobody else asks: what a device
// that went wrong says looks like an answer and is not one. kdserved(8) says what it finds and what it cannot.
//
// At start each model answers it alone, then beside two others that make it take another way (its beginning is computed by a neighbour and
// read from the cache, where there is one): the bytes must be the same. Then, where there is a directory, the answer is held against the
// one that the first start kept there; and where that is asked, against the reference's (kernels/ref). Later answers must be the first
// one's bytes.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct canary;
struct error;
struct record;
struct teacher;

#define CANARY_FIELD "canary"              // of every error that means a wrong answer

struct canary_stats {
	uint64_t n_right;                  // answers found right since start, each model's counted
	uint64_t age_ms;                   // since the last of them
};

// The engine's, once all is loaded: asks and compares. An error with field CANARY_FIELD is a wrong answer. On success canary_submit may be
// called from one other thread; `ret` is freed with canary_free after the engine ended.
int canary_start(struct teacher *t, struct canary **ret_canary, struct error *err);
struct canary *canary_free(struct canary *c);      // NULL is fine; returns NULL

// Asks again through the queue; nothing when the last question is still under way. A wrong answer poisons the teacher.
void canary_submit(struct canary *c);
void canary_stats(const struct canary *c, struct canary_stats *ret);
// Whether the batch holds no client's work. `c` may be NULL.
struct batch;
bool canary_is_alone(const struct canary *c, const struct batch *b);

// Holds an answer against another one of the same question: rows, ids and numbers, each of which may be off by `tolerance` times the larger
// of 1 and a 32nd of the largest logit. -EPROTO with the place and the size of the worst.
int canary_compare(const struct record *known, const struct record *now, double tolerance, struct error *err);
// How far answers of a numeric format may lie from those of another processor, or of a thread more.
double canary_tolerance(const char *numeric);
// The answer kept in the directory under the teacher's fingerprint; it is kept when there is none (or bytes that are no record). An error
// with CANARY_FIELD: it differs. Any other: the disk refused.
int canary_keep(const char *directory, const struct record *now, double tolerance, struct error *err);
