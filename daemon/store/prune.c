// SPDX-License-Identifier: Apache-2.0
#include "daemon/store/upkeep.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/directory.h"
#include "daemon/store/retention.h"

int upkeep_prune(const struct upkeep_prune *o, struct upkeep_pruned *ret, struct error *err)
{
	struct directory d;
	struct retention_plan plan = {0};
	struct retention r = {o->max_bytes, o->max_age_s};
	*ret = (struct upkeep_pruned){0};
	int rc = directory_open(&d, o->directory, o->dry_run, err);
	if (rc < 0)
		return rc;
	rc = retention_find(&d, &r, (int64_t)time(NULL), UINT32_MAX, &plan, err);
	ret->n_left = plan.n_left + plan.n;
	ret->left_bytes = plan.left_bytes + plan.n_bytes;
	for (size_t i = 0; rc == 0 && i < plan.n; i++) {
		const struct retention_shard *s = &plan.shards[i];
		if (!o->dry_run)
			rc = retention_remove(&d, s->id, err);
		if (rc < 0)
			break;
		ret->n_shards++;
		ret->n_bytes += s->n_bytes;
		ret->n_left--;
		ret->left_bytes -= s->n_bytes;
		o->removed(o->arg, &(struct upkeep_shard){s->id, s->n_bytes, s->written});
	}
	if (ret->n_shards && !o->dry_run && fsync(d.fd) < 0 && rc == 0)
		rc = error_system(err, errno, NULL, "store %s: cannot synchronise the directory", o->directory);
	retention_plan_done(&plan);
	directory_close(&d);
	return rc;
}
