// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/passage.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

int passage_init(struct passage *p, const struct sequence *s, uint32_t first, enum passage_author author)
{
	*p = (struct passage){.first = first, .author = author};
	return sequence_init(&p->sequence, s->tokens, s->n_tokens);
}

double passage_chance(const struct passage *p, uint32_t label, double log_p)
{
	double drawn = p->drawn[label - p->first];
	if (p->mixed <= 0)
		return drawn;
	double a = log1p(-p->mixed) + drawn, b = log(p->mixed) + log_p, high = fmax(a, b);     // ln ((1 - al) q + al p)
	return high + log1p(exp(fmin(a, b) - high));
}

void passage_done(struct passage *p)
{
	sequence_done(&p->sequence);
	free(p->logprobs);
	free(p->drawn);
	free(p->labels);
	*p = (struct passage){0};
}

struct passages *passages_new(uint32_t n)
{
	struct passages *p = calloc(1, sizeof *p + n * sizeof *p->list);
	if (p)
		p->n = n;
	return p;
}

struct passages *passages_free(struct passages *p)
{
	for (uint32_t i = 0; p && i < p->n; i++)
		passage_done(&p->list[i]);
	free(p);
	return NULL;
}
