// SPDX-License-Identifier: Apache-2.0
// Which of many items to learn from: pure functions on their values. Nothing here reads a file or asks a teacher.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Marks the `count` items of the largest values; of equal ones the earlier. NaN is never chosen. Returns how many were, or -ENOMEM.
int64_t choice_largest(const double *values /*(n)*/, size_t n, size_t count, bool *ret_chosen /*(n)*/);

// Gumbel(0, 1) noise of one item, a function of the two numbers alone. The largest `count` of (log weight + noise) are a sample without
// replacement, each next item in proportion to its weight.
double choice_gumbel(uint64_t seed, uint64_t item);

// Whom to ask when `bad` of the labels may be wrong ("Robust Active Distillation", arXiv 2210.01213): probabilities that make the gain in
// the worst case largest. Gains g >= 0 sorted descending, k the argmax over k > bad of (k - bad) / sum_{i <= k} 1/g_i; then in proportion
// to 1/g_i for i <= k, and 0 beyond. Items without gain (0, NaN) get 0. *ret_value: that gain; 0 when there are too few items.
int choice_queries(const double *gains, size_t n, size_t bad, double *ret_probabilities, double *ret_value);      // -ENOMEM
