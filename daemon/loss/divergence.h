// SPDX-License-Identifier: Apache-2.0
// Token losses on one pair of distributions: value and slope. slope[i] = q_i dL/dq_i = dL/d(ln q_i) for each symbol (the bucket is one),
// the teacher constant; gradient.h turns any of them into the gradient on the student's logits, the same way for all.
//
// Values lack weight and T^2. x: the loss's own parameters, in the order its row of method.c names them.
#pragma once

#include "daemon/loss/pair.h"

struct divergence {
	double value;
	double followed;               // what an adaptive schedule follows (TAID: the cross-entropy to its target); others leave it alone
	double floor;                  // its least value (soft cross-entropy: the entropy of p); others leave it alone
	bool direct;                   // slope[i] is dL/d(z_i / T) instead, and nothing outside S moves; others leave it alone
	double *slope;                 // (pair->n) the caller's; every entry is written
};
typedef void divergence_fn(const struct pair *pair, const double *x, struct divergence *ret);

divergence_fn divergence_forward_kl;           // KL(p; q)
divergence_fn divergence_soft_cross_entropy;   // - sum p ln q: KL(p; q) and the teacher's entropy
divergence_fn divergence_reverse_kl;           // KL(q; p)
divergence_fn divergence_half_sum;             // x = {r}: (1 - r) KL(p; q) + r KL(q; p)
divergence_fn divergence_jeffreys;             // KL(p; q) + KL(q; p)
divergence_fn divergence_jsd;                  // x = {beta, normalise}: beta KL(p; m) + (1 - beta) KL(q; m), m = beta p + (1 - beta) q;
                                               // normalised: over beta (1 - beta), with the limits KL(p; q) at 0 and KL(q; p) at 1
divergence_fn divergence_skew_forward;         // x = {al}: KL(p; al p + (1 - al) q)
divergence_fn divergence_skew_reverse;         // x = {al, detach}: KL(q; (1 - al) p + al q); detached: the mixture is a constant
divergence_fn divergence_tvd;                  // half the sum of |p - q|
divergence_fn divergence_ab;                   // x = {a, b}: alpha-beta divergence, with its limits at a = 0, b = 0, a + b = 0
divergence_fn divergence_adaptive_kl;          // x = {mu}: KL(p; q) and KL(q; p) weighted by the gaps in the teacher's head and tail
divergence_fn divergence_dkd;                  // x = {alpha, beta}: alpha KL of label against rest + beta KL of the rest; label in S
divergence_fn divergence_taid;                 // x = {t}: KL(P; q), P = softmax((1 - t) z of the student, a constant, + t z of the teacher)
divergence_fn divergence_dac_kl;               // x = {quantile}: KL of both rows renormalised over the teacher's top quantile and the label
divergence_fn divergence_first;                // x = {c}: KL of softmax over S of p / c to q renormalised over S

// On pairs of ranks (rank.c).
divergence_fn rank_uld;                        // sum over ranks of |p - q|, the rest of both rows being one rank more
divergence_fn rank_gold;                       // x = {beta, merge, matched, unmatched}, P = p_factor p, Q = q_factor q: matched times the
                                               // jsd of P and Q over ids that both have (beta 0: sum P ln(P / Q) - P + Q; 1: of Q to P)
                                               // + unmatched times uld of the others; below 0: the share of ids that both have,
                                               // and 1 less it

// On logits (logit.c).
enum logit_target { LOGIT_RAW, LOGIT_CENTRED, LOGIT_LOG_PROB };
divergence_fn logit_mse;                       // x = {target, phi, sum, above}: mean (or sum) over S of the squared gap to phi z / T
                                               // (LOG_PROB: of ln q to ln p, no phi); 0 where the mean is not over above phi
divergence_fn logit_hinge;                     // x = {margin}: mean over pairs of S with p_i > p_l of max(0, margin - (q_i - q_l));
                                               // margin 0: p_i - p_l
divergence_fn logit_logistic;                  // mean over the same pairs of ln(1 + e^-(z_i - z_l) / T)
divergence_fn logit_top_n;                     // sum over ids of S that are not the teacher's of max(0, z_j - least z of those that are)
