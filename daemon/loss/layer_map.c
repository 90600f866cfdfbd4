// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/layer_map.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number_read(const char **at, uint16_t *ret)
{
	char *end;
	if (**at < '0' || **at > '9')
		return -EINVAL;
	unsigned long n = strtoul(*at, &end, 10);
	if (n > 4096 || end - *at > 5)
		return -EINVAL;
	*at = end;
	*ret = (uint16_t)n;
	return 0;
}

static int pairs_parse(const char *text, struct layer_map *ret)
{
	ret->kind = LAYER_MAP_PAIRS;
	for (;;) {
		struct layer_pair *p = &ret->pairs[ret->n];
		if (ret->n == LAYER_MAP_MAX || number_read(&text, &p->student) || *text++ != ':' || number_read(&text, &p->teacher))
			return -EINVAL;
		ret->n++;
		if (!*text)
			return 0;
		if (*text++ != ',')
			return -EINVAL;
	}
}

int layer_map_parse(const char *text, struct layer_map *ret)
{
	static const char *const words[] = {"last", "final", "uniform", "skip:", "tail"};
	uint16_t step = 0;
	*ret = (struct layer_map){0};
	for (int i = 0; i < 5; i++) {
		const char *rest = text + strlen(words[i]);
		if (strncmp(text, words[i], strlen(words[i])) != 0)
			continue;
		ret->kind = i;
		if (i == LAYER_MAP_SKIP && (number_read(&rest, &step) || step == 0))
			return -EINVAL;
		ret->step = step;
		return *rest ? -EINVAL : 0;
	}
	return pairs_parse(text, ret);
}

bool layer_map_needs_depth(const struct layer_map *m)
{
	return m->kind == LAYER_MAP_LAST || m->kind == LAYER_MAP_UNIFORM || m->kind == LAYER_MAP_SKIP || m->kind == LAYER_MAP_TAIL;
}

static void add(struct layer_map *m, uint32_t student, uint32_t teacher)
{
	if (m->n < LAYER_MAP_MAX)
		m->pairs[m->n] = (struct layer_pair){(uint16_t)student, (uint16_t)teacher};
	m->n++;
}

static void fill(struct layer_map *m, uint32_t n_student, uint32_t n_teacher, bool blocks)
{
	if (m->kind == LAYER_MAP_LAST)
		add(m, n_student, n_teacher);
	if (m->kind == LAYER_MAP_FINAL)
		add(m, 0, 0);
	for (uint32_t i = blocks; m->kind == LAYER_MAP_UNIFORM && i <= n_student; i++)
		add(m, i, (uint32_t)((uint64_t)i * n_teacher / n_student));
	for (uint32_t i = 1; m->kind == LAYER_MAP_SKIP && i < n_student && (uint64_t)i * m->step < n_teacher; i++)
		add(m, i, i * m->step);
	for (uint32_t i = 1; m->kind == LAYER_MAP_TAIL && i < n_student; i++)
		add(m, i, n_teacher - n_student + i);
}

const char *layer_map_resolve(struct layer_map *m, uint32_t n_student, uint32_t n_teacher, bool blocks, char *why, size_t room)
{
	if (m->kind == LAYER_MAP_FINAL && blocks)
		return "final has no q, k and v rows";
	if (layer_map_needs_depth(m) && n_teacher == 0)
		return "shards do not say how many layers the teacher has: set teacher-layers, or name pairs (1:2,2:4)";
	if ((m->kind == LAYER_MAP_UNIFORM && n_teacher % n_student) || (m->kind == LAYER_MAP_TAIL && n_teacher < n_student)) {
		snprintf(why, room, "the student's %u layers do not divide the teacher's %u: name pairs (1:2,2:4)", n_student, n_teacher);
		return why;
	}
	if (m->kind != LAYER_MAP_PAIRS)
		m->n = 0;
	fill(m, n_student, n_teacher, blocks);
	if (m->n == 0 || m->n > LAYER_MAP_MAX) {
		snprintf(why, room, "%u pairs of layers; 1 to %d are possible", m->n, LAYER_MAP_MAX);
		return why;
	}
	for (uint32_t i = 0; i < m->n; i++) {
		const struct layer_pair *p = &m->pairs[i];
		if (m->kind != LAYER_MAP_FINAL && (p->student < blocks || p->student > n_student || p->teacher < blocks ||
						   (n_teacher && p->teacher > n_teacher))) {
			snprintf(why, room, "%u:%u is out of range: the student has layers %d to %u, the teacher to %u", p->student,
				 p->teacher, blocks, n_student, n_teacher);
			return why;
		}
	}
	return NULL;
}
