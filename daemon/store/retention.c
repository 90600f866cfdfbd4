// SPDX-License-Identifier: Apache-2.0
#include "daemon/store/retention.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/appender.h"
#include "daemon/store/crash.h"

// 1: it is gone.
static int shard_stat(const struct directory *d, uint32_t id, struct retention_shard *ret, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	struct stat st;
	directory_shard_name(id, name);
	if (fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 1 : error_system(err, errno, NULL, "store %s: %s", d->path, name);
	*ret = (struct retention_shard){.id = id, .n_bytes = (uint64_t)st.st_size, .written = (int64_t)st.st_mtime};
	directory_index_name(id, name);
	if (fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		ret->index_bytes = (uint64_t)st.st_size;
	ret->n_bytes += ret->index_bytes;
	return 0;
}

static int compare_ages(const void *a, const void *b)
{
	const struct retention_shard *x = a, *y = b;
	if (x->written != y->written)
		return x->written < y->written ? -1 : 1;
	return (x->id > y->id) - (x->id < y->id);
}

// The oldest ones for which a limit is passed move to the plan.
static void plan_choose(struct retention_plan *p, const struct retention *r, int64_t now, size_t n_candidates)
{
	size_t n = 0;
	qsort(p->shards, n_candidates, sizeof *p->shards, compare_ages);
	for (; n < n_candidates; n++) {
		const struct retention_shard *s = &p->shards[n];
		bool old = r->max_age_s && now > s->written && (uint64_t)(now - s->written) > r->max_age_s;
		if (!old && !(r->max_bytes && p->left_bytes > r->max_bytes))
			break;
		p->n_bytes += s->n_bytes;
		p->left_bytes -= s->n_bytes;
		p->n_left--;
	}
	p->n = n;
}

int retention_find(const struct directory *d, const struct retention *r, int64_t now, uint32_t current, struct retention_plan *ret,
		   struct error *err)
{
	uint32_t *ids = NULL;
	size_t n = 0, n_candidates = 0;
	*ret = (struct retention_plan){0};
	struct directory looking = {.fd = d->fd, .lock = -1, .path = d->path};      // files being made are somebody's
	int rc = directory_list(&looking, &ids, &n, err);
	if (rc == 0 && n && !(ret->shards = calloc(n, sizeof *ret->shards)))
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory for the list of shards");
	for (size_t i = 0; rc >= 0 && i < n; i++) {
		struct retention_shard s;
		rc = shard_stat(d, ids[i], &s, err);
		if (rc)
			continue;
		ret->n_left++;
		ret->left_bytes += s.n_bytes;
		if (i + 1 < n && s.id != current)
			ret->shards[n_candidates++] = s;
	}
	free(ids);
	if (rc < 0)
		retention_plan_done(ret);
	else if (n_candidates)
		plan_choose(ret, r, now, n_candidates);
	return rc < 0 ? rc : 0;
}

void retention_plan_done(struct retention_plan *p)
{
	free(p->shards);
	*p = (struct retention_plan){0};
}

int retention_remove(const struct directory *d, uint32_t id, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	directory_index_name(id, name);
	if (unlinkat(d->fd, name, 0) < 0 && errno != ENOENT)
		return error_system(err, errno, NULL, "store %s: cannot remove %s", d->path, name);
	directory_shard_name(id, name);
	if (unlinkat(d->fd, name, 0) < 0 && errno != ENOENT)
		return error_system(err, errno, NULL, "store %s: cannot remove %s", d->path, name);
	crash(CRASH_REWRITE_REMOVED);
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static void plan_apply(struct store_parts *parts, const struct retention_plan *plan, uint32_t *ids)
{
	struct store_counters *c = &parts->counters;
	size_t n = 0;
	for (size_t i = 0; i < plan->n; i++) {
		if (retention_remove(&parts->directory, plan->shards[i].id, NULL) < 0)
			break;                       // tried again when this is called again
		ids[n++] = plan->shards[i].id;
		atomic_fetch_add(&c->n_removed_shards, 1);
		atomic_fetch_add(&c->removed_bytes, plan->shards[i].n_bytes);
		atomic_fetch_sub(&c->n_bytes, plan->shards[i].n_bytes - plan->shards[i].index_bytes);
	}
	qsort(ids, n, sizeof *ids, compare_ids);
	index_remove_shards(parts->index, ids, n);
	index_lock(parts->index);
	for (size_t i = 0; i < n; i++)
		shards_remove(&parts->shards, ids[i]);
	index_unlock(parts->index);
}

void retention_apply(struct store_parts *parts, const struct retention *r, uint32_t current)
{
	struct retention_plan plan;
	if (retention_find(&parts->directory, r, (int64_t)time(NULL), current, &plan, NULL) < 0)
		return;
	uint32_t *ids = plan.n ? malloc(plan.n * sizeof *ids) : NULL;
	if (ids)
		plan_apply(parts, &plan, ids);
	free(ids);
	retention_plan_done(&plan);
}
