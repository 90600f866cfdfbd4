// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/schedule.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Reads a plain decimal number up to `end`; no "nan", "inf", hexadecimal.
static const char *number_read(const char *text, double *ret)
{
	size_t n = strspn(text, "0123456789+-.eE");
	char copy[64], *end;
	if (n == 0 || n >= sizeof copy)
		return NULL;
	memcpy(copy, text, n);
	copy[n] = '\0';
	*ret = strtod(copy, &end);
	return *end || !isfinite(*ret) ? NULL : text + n;
}

static const char *step_read(const char *text, uint64_t *ret)
{
	uint64_t v = 0;
	if (!isdigit((unsigned char)*text))
		return NULL;
	for (; isdigit((unsigned char)*text); text++)
		if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*text - '0'), &v))
			return NULL;
	*ret = v;
	return v == UINT64_MAX ? NULL : text;
}

// FROM:TO[:BEGIN-[END]]
static int ramp_parse(const char *p, struct schedule *s)
{
	s->n = 2;
	s->steps[0] = 0;
	s->steps[1] = UINT64_MAX;
	p = number_read(p, &s->values[0]);
	if (!p || *p != ':')
		return -EINVAL;
	p = number_read(p + 1, &s->values[1]);
	if (!p || !*p)
		return p ? 0 : -EINVAL;
	if (*p != ':' || !(p = step_read(p + 1, &s->steps[0])) || *p != '-')
		return -EINVAL;
	if (p[1] && (!(p = step_read(p + 1, &s->steps[1])) || *p))
		return -EINVAL;
	return s->steps[0] < s->steps[1] ? 0 : -EINVAL;
}

// STEP=VALUE,...
static int points_parse(const char *p, struct schedule *s)
{
	for (s->n = 0; s->n < SCHEDULE_MAX_POINTS; p++) {
		uint32_t i = s->n++;
		p = step_read(p, &s->steps[i]);
		if (!p || *p != '=' || (i && s->steps[i] <= s->steps[i - 1]))
			return -EINVAL;
		p = number_read(p + 1, &s->values[i]);
		if (!p || (*p && *p != ','))
			return -EINVAL;
		if (!*p)
			return 0;
	}
	return -EINVAL;
}

int schedule_parse(const char *text, struct schedule *ret)
{
	static const char *const names[] = {
		[SCHEDULE_LINEAR] = "linear:", [SCHEDULE_COSINE] = "cosine:", [SCHEDULE_PIECEWISE] = "piecewise:"};
	*ret = (struct schedule){.kind = SCHEDULE_CONSTANT, .n = 1};
	for (int kind = SCHEDULE_LINEAR; kind <= SCHEDULE_PIECEWISE; kind++) {
		size_t n = strlen(names[kind]);
		if (strncmp(text, names[kind], n) != 0)
			continue;
		ret->kind = kind;
		return kind == SCHEDULE_PIECEWISE ? points_parse(text + n, ret) : ramp_parse(text + n, ret);
	}
	const char *end = number_read(text, &ret->values[0]);
	return end && !*end ? 0 : -EINVAL;
}

double schedule_at(const struct schedule *s, uint64_t step, uint64_t n_steps)
{
	uint32_t i = 0;
	uint64_t end = s->steps[s->n - 1] == UINT64_MAX ? n_steps : s->steps[s->n - 1];
	if (s->n == 1 || step <= s->steps[0])
		return s->values[0];
	if (step >= end)
		return s->values[s->n - 1];
	while (i + 2 < s->n && s->steps[i + 1] <= step)
		i++;
	uint64_t to = i + 2 == s->n ? end : s->steps[i + 1];
	double part = (double)(step - s->steps[i]) / (double)(to - s->steps[i]);
	if (s->kind == SCHEDULE_COSINE)
		part = (1 - cos(M_PI * part)) / 2;
	return s->values[i] + (s->values[i + 1] - s->values[i]) * part;
}

bool schedule_within(const struct schedule *s, double min, double max)
{
	for (uint32_t i = 0; i < s->n; i++)
		if (!(s->values[i] >= min && s->values[i] <= max))
			return false;
	return true;
}

bool schedule_is(const struct schedule *s, double value)
{
	return schedule_within(s, value, value);
}
