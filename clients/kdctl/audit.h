// SPDX-License-Identifier: Apache-2.0
// kdctl audit: shared by audit*.c alone. Answers are held to those of a reference, row by row (audit_compare.c); which answers, and what is
// said about it: audit.c.
#pragma once

#include "clients/kdctl/kdctl.h"

// Absolute differences of one signal.
struct audit_signal { double *errors; size_t n, capacity; };

enum { AUDIT_LSE, AUDIT_LOGITS, AUDIT_OWN, AUDIT_ENTROPY, N_AUDIT_SIGNALS };
extern const char *const audit_signal_names[N_AUDIT_SIGNALS];

struct audit {
	struct kdctl *k;                 // of messages
	struct kd_client *reference;
	double bound;                    // largest difference of a value that is allowed
	struct audit_signal signals[N_AUDIT_SIGNALS];
	uint64_t n_sequences, n_rows, n_skipped;
	uint64_t n_status;               // rows that one of the two calls not finite
	uint64_t n_ids, n_ids_beyond;    // ids that the reference does not have among its own; of these, no tie within the bound
};

// Asks the reference the same as `have` answers, beside it the reference's logits at the ids that `have` chose, and adds up the
// differences. What cannot be compared (dense rows, spans and features alone) is skipped and counted. 0, or an exit status, said why.
int audit_compare(struct audit *a, struct kd_answer *have);
struct audit_summary { double mean, p99, max; };
struct audit_summary audit_summarise(struct audit_signal *s);     // sorts; zeros when there are none
void audit_done(struct audit *a);
