// SPDX-License-Identifier: Apache-2.0
// What a teacher says of itself, to any thread once it is READY.
#include <stdio.h>

#include "common/provenance.h"
#include "daemon/teacher/teacher_internal.h"

double teacher_upload_rate(const struct teacher_info *info)
{
	return info->upload_bytes ? info->upload_seconds / ((double)info->upload_bytes * 0x1p-30) : 0;
}

const struct teacher_info *teacher_info(const struct teacher *t)
{
	return &t->infos[0];
}

const struct teacher_info *teacher_infos(const struct teacher *t, uint32_t *ret_n)
{
	*ret_n = t->n_members;
	return t->infos;
}

struct provenance teacher_provenance(const struct teacher_info *info)
{
	struct provenance p = {.fingerprint = info->fingerprint, .weights = info->weights_id, .tokenizer = info->tokenizer_id,
			       .codec = PROVENANCE_CODEC};
	snprintf(p.numeric, sizeof p.numeric, "%s", info->numeric);
	snprintf(p.name, sizeof p.name, "%s", info->name);
	return p;
}

const struct tokenizer *teacher_tokenizer(const struct teacher *t)
{
	return t->tokenizer;
}

int teacher_read_rows(const struct teacher *t, uint32_t member, enum teacher_tensor tensor, const uint32_t *ids, uint32_t n,
		      float *ret_values, struct error *err)
{
	return member_read_rows(&t->members[member], tensor, ids, n, ret_values, err);
}
