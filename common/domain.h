// SPDX-License-Identifier: Apache-2.0
// How much of each domain to train on next, by how far a student is behind its teacher there (DDK, arXiv 2407.16154).
#pragma once

#include <stddef.h>

// student, teacher: perplexities (n). Shares sum to 1: at first softmax of student / teacher; later alpha psi / sum psi + (1 - alpha) / n,
// psi = previous exp(student / teacher). Ratios above 10 count as 10: that of an untrained student would leave nothing to the others.
void domain_shares(const double *student, const double *teacher, const double *previous /*NULL*/, size_t n, double alpha, double *ret);
