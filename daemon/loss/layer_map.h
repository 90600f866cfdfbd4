// SPDX-License-Identifier: Apache-2.0
// Which layer of the student learns from which of the teacher's. Layer i is what i blocks have made of a row, 0 the embedding; of q, k and
// v rows, block i counted from 1.
//     last          the last of both
//     final         after the final norm of both: what the LM heads read (hidden rows alone)
//     uniform       student's i from teacher's i M / m, of m and M layers: 0 too for hidden rows; m divides M
//     skip:N        i from N i, as far as both go, without the last of either (PKD-Skip)
//     tail          i from M - m + i, without the last (PKD-Last)
//     1:2,3:6       these pairs, student:teacher
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LAYER_MAP_MAX 64               // pairs

struct layer_pair { uint16_t student, teacher; };

struct layer_map {
	enum { LAYER_MAP_LAST, LAYER_MAP_FINAL, LAYER_MAP_UNIFORM, LAYER_MAP_SKIP, LAYER_MAP_TAIL, LAYER_MAP_PAIRS } kind;
	uint32_t step;                         // of skip
	uint32_t n;                            // pairs: as given, or resolved
	struct layer_pair pairs[LAYER_MAP_MAX];
};

int layer_map_parse(const char *text, struct layer_map *ret);          // -EINVAL
bool layer_map_needs_depth(const struct layer_map *m);                 // of the teacher, to be resolved
// Its pairs for models of so many blocks (n_teacher 0: unknown, where it need not be known); `blocks`: of q, k and v rows.
// A reason, or NULL.
const char *layer_map_resolve(struct layer_map *m, uint32_t n_student, uint32_t n_teacher, bool blocks, char *why, size_t room);
