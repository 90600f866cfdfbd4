// SPDX-License-Identifier: Apache-2.0
// Matrices in 8-bit integers, and products with them (enum backend_numeric, INT8). Integer sums have no order, sums over groups have one,
// and a row is quantised by itself: results do not depend on company or threads.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct backend;
struct cpu_vector;

// Packed in panels of the instruction set's width: a byte for each value, and a scale for each group of a row.
struct int8_matrix {
	uint32_t n, k, n_groups, panel;  // outputs, terms, groups of a row, outputs of a panel
	uint32_t terms, offset;          // that lie side by side; added to every value, modulo 256
	int8_t *values;                  // (n / panel rounded up, n_groups * INT8_GROUP / terms, panel, terms),
	                                 // what lies beyond n or k is 0
	float *scales;                   // (n / panel rounded up, n_groups, panel)
};

struct int8_matrix *int8_matrix_new(const struct cpu_vector *vector, uint32_t n, uint32_t k);    // values unset; NULL: no memory
struct int8_matrix *int8_matrix_free(struct int8_matrix *m);     // returns NULL; NULL is fine
uint32_t int8_matrix_panels(const struct int8_matrix *m);
size_t int8_matrix_scratch(const struct int8_matrix *m);         // floats that int8_matrix_pack() needs
// Row `row` from k floats, or, beyond n, zeros: every row of every panel must be packed once. Panels may be packed by several threads.
void int8_matrix_pack(struct int8_matrix *m, const struct cpu_vector *vector, uint32_t row, const float *from, float *scratch);
void int8_matrix_row(const struct int8_matrix *m, uint32_t row, float *ret_values);    // what a row's integers stand for (k)
// y (rows, n) {=, +=} x (rows, k) times the matrix, + bias unless NULL.
void int8_multiply(struct backend *be, float *y, bool add, const float *x, const struct int8_matrix *m, const float *bias, size_t rows);
