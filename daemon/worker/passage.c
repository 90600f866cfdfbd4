// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/passage.h"

#include <errno.h>
#include <stdlib.h>

int passage_init(struct passage *p, const struct sequence *s, uint32_t first, enum passage_author author)
{
	*p = (struct passage){.first = first, .author = author};
	return sequence_init(&p->sequence, s->tokens, s->n_tokens);
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
