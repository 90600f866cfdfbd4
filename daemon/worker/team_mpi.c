// SPDX-License-Identifier: Apache-2.0
// MPI's own waits spin, and never end when another process is gone. So every exchange here is started, and then looked at: without a pause
// while it is young, for the bytes of an exchange only move while someone looks; later with naps, for then another process is at work (or
// waits for its teacher), and the processor may be that one's.
#include "daemon/worker/team_mpi.h"

#include <limits.h>
#include <mpi.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "common/error.h"
#include "daemon/clock.h"

#define TEAM_EAGER_SECONDS 0.05        // longer than a piece of a gradient takes on a slow network
#define TEAM_NAP_NS 1000000

struct team_mpi { MPI_Comm all; };

static int failed(int code, const char *what, struct error *err)
{
	char text[MPI_MAX_ERROR_STRING] = "";
	int n = 0;
	MPI_Error_string(code, text, &n);
	return error_set(err, ERROR_IO, NULL, "%s between the processes failed: %s", what, text);
}

int team_mpi_open(struct team_mpi **ret, uint32_t *ret_rank, uint32_t *ret_size, struct error *err)
{
	int level = 0, rank = 0, size = 1;
	struct team_mpi *m = calloc(1, sizeof *m);
	if (!m)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
	if (code == MPI_SUCCESS)
		code = MPI_Comm_dup(MPI_COMM_WORLD, &m->all);
	if (code != MPI_SUCCESS || level < MPI_THREAD_FUNNELED) {
		free(m);
		return error_set(err, ERROR_IO, NULL, "MPI cannot be started%s", code == MPI_SUCCESS ? ": it allows no threads" : "");
	}
	MPI_Comm_set_errhandler(m->all, MPI_ERRORS_RETURN);
	MPI_Comm_rank(m->all, &rank);
	MPI_Comm_size(m->all, &size);
	*ret_rank = (uint32_t)rank;
	*ret_size = (uint32_t)size;
	*ret = m;
	return 0;
}

void team_mpi_close(struct team_mpi *m, int broken)
{
	if (!m)
		return;
	if (broken)
		MPI_Abort(m->all, EXIT_FAILURE);       // does not return
	MPI_Comm_free(&m->all);
	MPI_Finalize();
	free(m);
}

static int complete(MPI_Request *request, uint64_t silence_ms, const char *what, struct error *err)
{
	double begin = clock_seconds();
	for (int done = 0;;) {
		int code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
		if (code != MPI_SUCCESS)
			return failed(code, what, err);
		if (done)
			return 0;
		double waited = clock_seconds() - begin;
		if (silence_ms && waited * 1000 > (double)silence_ms)
			return error_set(err, ERROR_DEADLINE, NULL, "another process has said nothing for %.0f s (%s): giving up", waited,
				what);
		if (waited < TEAM_EAGER_SECONDS)
			sched_yield();
		else
			nanosleep(&(struct timespec){.tv_nsec = TEAM_NAP_NS}, NULL);
	}
}

static int started(int code, MPI_Request *request, uint64_t silence_ms, const char *what, struct error *err)
{
	return code == MPI_SUCCESS ? complete(request, silence_ms, what, err) : failed(code, what, err);
}

int team_mpi_gather(struct team_mpi *m, const void *mine, size_t n, void *ret_all, uint64_t silence_ms, struct error *err)
{
	MPI_Request request;
	int code = MPI_Iallgather(mine, (int)n, MPI_BYTE, ret_all, (int)n, MPI_BYTE, m->all, &request);
	// NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): complete() tests it until it is done, or this process ends
	return started(code, &request, silence_ms, "gathering", err);
}

int team_mpi_broadcast(struct team_mpi *m, void *bytes, size_t n, uint64_t silence_ms, struct error *err)
{
	MPI_Request request;
	int code = MPI_Ibcast(bytes, (int)n, MPI_BYTE, 0, m->all, &request);
	// NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): complete() tests it until it is done, or this process ends
	return started(code, &request, silence_ms, "telling", err);
}

int team_mpi_exchange(struct team_mpi *m, const float *mine, size_t n, float *ret, uint64_t silence_ms, struct error *err)
{
	MPI_Request request;
	int code = MPI_Ialltoall(mine, (int)n, MPI_FLOAT, ret, (int)n, MPI_FLOAT, m->all, &request);
	// NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): complete() tests it until it is done, or this process ends
	return started(code, &request, silence_ms, "exchanging", err);
}
