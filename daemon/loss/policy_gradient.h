// SPDX-License-Identifier: Apache-2.0
// The reverse KL of what a student writes, from the tokens it drew alone: the score-function (REINFORCE) gradient, with the teacher's word
// for each token as reward. r = ln p - ln q at a drawn token; a token's return is made of its own r and of those after it.
#pragma once

struct loss_position;

enum policy_parameter { POLICY_GAMMA, POLICY_CURRENT, POLICY_NORMALISE, POLICY_CLIP, POLICY_SCALE, POLICY_LIMIT, POLICY_N };

// R of the label: r_0 (current) + gamma r_1 + gamma^2 r_2 + ... over the rewards of the position; without `current` r_1 + gamma r_2 + ...,
// what comes of the token, its own part being left to an exact loss. Each r is divided by the scale and cut off at +- the limit (0: not).
// Normalised: over the number of terms there are (0 when there are none).
double policy_return(const struct loss_position *x, const double *parameters);

// Value of the surrogate - rho R, rho = q / (what it was drawn with), and in *ret_factor what multiplies d ln q(label). With clip c > 0 it
// is max(-rho R, -clip(rho, 1 - c, 1 + c) R), constant where the second counts. On drawn tokens the gradient's expectation is that of the
// reverse KL: of the row alone with gamma 0, of the whole answer with gamma 1.
double policy_gradient(const struct loss_position *x, const double *parameters, double *ret_factor);
