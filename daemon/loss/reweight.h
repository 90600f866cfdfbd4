// SPDX-License-Identifier: Apache-2.0
// Which samples of a batch count more, by their own losses: "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model
// Pretraining" (Sow et al., arXiv 2502.06733). h = 2 delta (L - mid) / range lies in -delta .. delta; weights are softmax(s(h) / r):
//     linear-upper   s = min(h + delta, delta): the lower half fades, the upper half is alike
//     quadratic      s = 1 - h^2 / delta^2: the middle counts most
//     extremes       s = |h|: both ends count most
#pragma once

#include <stdint.h>

enum reweight_kind { REWEIGHT_OFF, REWEIGHT_LINEAR_UPPER, REWEIGHT_QUADRATIC, REWEIGHT_EXTREMES };

struct reweight {
	enum reweight_kind kind;
	double strength, temperature;          // delta, r: both above 0
};

// Weights of n losses, which sum to 1; a loss that is NAN is of a sample that nothing is known of, and weighs 0. Equal losses weigh alike.
void reweight_weigh(const struct reweight *w, const double *losses, uint32_t n, double *ret);
