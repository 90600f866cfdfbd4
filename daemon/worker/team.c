// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/team.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "config.h"
#include "kernels/backend.h"
#include "kernels/peers.h"

#ifdef HAVE_MPI
#include "daemon/worker/team_mpi.h"
#endif
#undef team_agree        // wrapped for the analyser alone

#define TEAM_PIECE_BYTES ((size_t)1 << 26)     // of a broadcast: MPI counts in int
#define TEAM_PIECE_FLOATS ((size_t)1 << 20)    // of an array on its way through the host

struct team {
	uint32_t rank, size;
	uint64_t silence_ms;
	struct team_mpi *mpi;
	struct peers *peers;           // NULL: arrays go through the host
	bool broken;                   // the others cannot be reached, or are not where this process is
	int ended;                     // what all agreed to fail with
	struct error why;
	float *here, *there;           // (TEAM_PIECE_FLOATS rounded up to size) of arrays on their way
	double *read;
};

uint32_t team_rank(const struct team *t)
{
	return t ? t->rank : 0;
}

uint32_t team_size(const struct team *t)
{
	return t ? t->size : 1;
}

void team_set_silence(struct team *t, uint64_t ms)
{
	t->silence_ms = ms;
}

// How many processes whoever started this one said there are; 0 = nobody did.
static unsigned long launched(const char **ret_by)
{
	static const char *const names[][2] = {{"OMPI_COMM_WORLD_SIZE", "mpirun"}, {"PMI_SIZE", "a process manager"}};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		const char *text = getenv(names[i][0]);
		*ret_by = names[i][1];
		if (text && strtoul(text, NULL, 10) > 0)
			return strtoul(text, NULL, 10);
	}
	const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
	*ret_by = "srun";
	return tasks && getenv("SLURM_PROCID") ? strtoul(tasks, NULL, 10) : 0;
}

#ifdef HAVE_MPI
// One GPU for each process of a machine, in the order of their numbers, unless something has chosen already.
static void device_choose(void)
{
	const char *local = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
	local = local ? local : getenv("SLURM_LOCALID");
	if (local)
		setenv("CUDA_VISIBLE_DEVICES", local, 0);
}

static int mpi_open(struct team *t, unsigned long expected, const char *by, struct error *err)
{
	if (strcmp(by, "srun") == 0 && !getenv("PMIX_RANK"))
		return error_set(err, ERROR_INVALID, NULL, "srun started %lu processes that do not know each other: srun --mpi=pmix",
			expected);
	device_choose();
	return team_mpi_open(&t->mpi, &t->rank, &t->size, err);
}
#else
static int mpi_open(struct team *t, unsigned long expected, const char *by, struct error *err)
{
	(void)t;
	return error_set(err, ERROR_UNSUPPORTED, NULL, "%s started %lu processes; this build trains in one only (configure --with-mpi)", by,
			 expected);
}
#endif

static int staging_new(struct team *t, struct error *err)
{
	size_t n = (TEAM_PIECE_FLOATS / t->size + 1) * t->size;
	t->here = reallocarray(NULL, n, sizeof *t->here);
	t->there = reallocarray(NULL, n, sizeof *t->there);
	t->read = reallocarray(NULL, n, sizeof *t->read);
	return t->here && t->there && t->read ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
}

int team_open(const struct team_options *options, struct team **ret, struct error *err)
{
	const char *by;
	unsigned long expected = launched(&by);
	struct team *t = calloc(1, sizeof *t);
	if (!t)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	t->size = 1;
	t->silence_ms = options->silence_ms;
	int r = expected > 1 ? mpi_open(t, expected, by, err) : 0;
	if (r == 0 && t->size > 1)
		r = staging_new(t, err);
	if (r) {
		t->broken = true;
		team_close(t);
		return r;
	}
	*ret = t;
	return 0;
}

struct team *team_close(struct team *t)
{
	if (!t)
		return NULL;
	peers_close(t->peers);
#ifdef HAVE_MPI
	team_mpi_close(t->mpi, t->broken);
#endif
	free(t->here);
	free(t->there);
	free(t->read);
	free(t);
	return NULL;
}

// Every exchange goes through here: one that failed leaves nothing to exchange with.
static int through(struct team *t, int r)
{
	t->broken = t->broken || r;
	return r;
}

static int may_exchange(const struct team *t, struct error *err)
{
	if (t->ended && err)
		*err = t->why;
	if (t->ended)
		return t->ended;
	return t->broken ? error_set(err, ERROR_IO, NULL, "the other processes cannot be reached any more") : 0;
}

int team_gather(struct team *t, const void *mine, size_t n, void *ret_all, struct error *err)
{
	if (team_size(t) == 1) {
		memcpy(ret_all, mine, n);
		return 0;
	}
	int r = may_exchange(t, err);
#ifdef HAVE_MPI
	r = r ? r : through(t, team_mpi_gather(t->mpi, mine, n, ret_all, t->silence_ms, err));
#endif
	return r;
}

int team_broadcast(struct team *t, void *bytes, size_t n, struct error *err)
{
	int r = team_size(t) > 1 ? may_exchange(t, err) : 0;
	(void)bytes;    // without MPI there is nobody to tell
	for (size_t at = 0, some; team_size(t) > 1 && r == 0 && at < n; at += some) {
		some = n - at < TEAM_PIECE_BYTES ? n - at : TEAM_PIECE_BYTES;
#ifdef HAVE_MPI
		r = through(t, team_mpi_broadcast(t->mpi, (char *)bytes + at, some, t->silence_ms, err));
#endif
	}
	return r;
}

// ---- agreeing

struct verdict { int r; struct error why; };

static int foreign(struct error *err, uint32_t rank, const struct verdict *v)
{
	if (!err)
		return v->r;
	*err = v->why;
	snprintf(err->message, sizeof err->message, "process %u: %.*s", rank, (int)sizeof v->why.message - 32, v->why.message);
	return v->r;
}

static int verdicts_judge(struct team *t, const struct verdict *all, struct error *err)
{
	const struct verdict *mine = &all[t->rank];
	int cancelled = 0;
	for (uint32_t i = 0; i < t->size; i++) {
		const struct verdict *one = mine->r && mine->r != -ECANCELED ? mine : &all[i];
		if (one->r == 0)
			continue;
		if (one->r == -ECANCELED) {
			cancelled = one->r;
			continue;
		}
		t->ended = one->r;
		int r = one == mine ? one->r : foreign(err, i, one);
		if (err)
			t->why = *err;
		return r;
	}
	return cancelled ? error_set(err, ERROR_CANCELLED, NULL, "asked to stop") : 0;
}

int team_agree(struct team *t, int r, struct error *err)
{
	if (team_size(t) == 1)
		return r;
	if (t->ended || t->broken)     // what has been said stands; a later failure of our own is the better reason
		return r ? r : may_exchange(t, err);
	struct verdict mine = {.r = r}, *all = calloc(t->size, sizeof *all);
	if (!all) {
		t->broken = true;
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	}
	if (r && err)
		mine.why = *err;
	int failed = team_gather(t, &mine, sizeof mine, all, r ? NULL : err);
	if (failed == 0)
		failed = verdicts_judge(t, all, err);
	free(all);
	return r && r != -ECANCELED ? r : failed;
}

int team_sum(struct team *t, double *values, size_t n, struct error *err)
{
	if (team_size(t) == 1)
		return 0;
	double *all = reallocarray(NULL, t->size, n * sizeof *all);
	if (!all) {
		t->broken = true;
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	}
	int r = team_gather(t, values, n * sizeof *values, all, err);
	for (size_t i = 0; r == 0 && i < n; i++) {
		double sum = all[i];
		for (uint32_t rank = 1; rank < t->size; rank++)
			sum += all[rank * n + i];
		values[i] = sum;
	}
	free(all);
	return r;
}

// ---- arrays

// n values, filled up to whole pieces with zeros: rank i sums piece i, then everyone has all of them.
static int piece_sum(struct team *t, size_t n, struct error *err)
{
	size_t each = (n + t->size - 1) / t->size;
	int r = 0;
	memset(t->here + n, 0, (each * t->size - n) * sizeof *t->here);
#ifdef HAVE_MPI
	r = through(t, team_mpi_exchange(t->mpi, t->here, each, t->there, t->silence_ms, err));
#endif
	for (size_t i = 0; r == 0 && i < each; i++) {
		double sum = (double)t->there[i];
		for (uint32_t rank = 1; rank < t->size; rank++)
			sum += (double)t->there[rank * each + i];
		t->there[i] = (float)sum;
	}
	return r ? r : team_gather(t, t->there, each * sizeof *t->there, t->here, err);
}

static void piece_read(struct team *t, struct backend *be, const struct real *from, size_t n)
{
	be->ops->real_read(be, t->read, from, n);
	for (size_t i = 0; i < n; i++)
		t->here[i] = (float)t->read[i];
}

int team_sum_array(struct team *t, struct backend *be, struct real *array, size_t n, struct error *err)
{
	if (team_size(t) == 1)
		return 0;
	int r = may_exchange(t, err);
	if (r == 0 && t->peers)
		return through(t, peers_sum(t->peers, array, n, t->silence_ms, err));
	for (size_t at = 0, some; r == 0 && at < n; at += some) {
		struct real *piece = be->ops->real_at(array, at);
		some = n - at < TEAM_PIECE_FLOATS ? n - at : TEAM_PIECE_FLOATS;
		piece_read(t, be, piece, some);
		r = piece_sum(t, some, err);
		if (r == 0)
			be->ops->real_write(be, piece, t->here, some);
	}
	return r ? r : through(t, backend_sync(be, err));
}

int team_broadcast_array(struct team *t, struct backend *be, struct real *array, size_t n, struct error *err)
{
	int r = 0;
	for (size_t at = 0, some; team_size(t) > 1 && r == 0 && at < n; at += some) {
		struct real *piece = be->ops->real_at(array, at);
		some = n - at < TEAM_PIECE_FLOATS ? n - at : TEAM_PIECE_FLOATS;
		if (t->rank == 0)
			piece_read(t, be, piece, some);
		r = team_broadcast(t, t->here, some * sizeof *t->here, err);
		if (r == 0 && t->rank)
			be->ops->real_write(be, piece, t->here, some);
	}
	return r;
}

// ---- devices

static int all_able(struct team *t, const struct backend *be, bool *ret, struct error *err)
{
	double n_able = peers_able(be) ? 1 : 0;
	int r = team_sum(t, &n_able, 1, err);
	*ret = n_able == (double)t->size;
	return r;
}

int team_join_devices(struct team *t, struct backend *be, const char **ret_how, struct error *err)
{
	uint8_t id[PEERS_ID_BYTES] = {0};
	bool able = false;
	*ret_how = "MPI";
	int r = team_size(t) > 1 ? all_able(t, be, &able, err) : 0;
	if (r || !able)
		return r;
	r = t->rank == 0 ? peers_make_id(be, id, err) : 0;
	r = team_agree(t, r, err);
	r = r ? r : team_broadcast(t, id, sizeof id, err);
	if (r)
		return r;
	*ret_how = "NCCL";
	r = peers_open(be, id, t->rank, t->size, &t->peers, err);
	return team_agree(t, r, err);
}
