// SPDX-License-Identifier: Apache-2.0
// Stands before liburing (a submission queue entry becomes a NOP that returns what we say, kernel 6.10 or later) and before libc.
#include "tests/crash/fault.h"

#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOP_INJECT_RESULT 1u        // IORING_NOP_INJECT_RESULT, newer than Debian 12's headers
#define MAX_FAILED 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { bool armed; uint64_t nth, n_times; int result; long part; } plans[N_FAULT_KINDS];
static uint64_t counts[N_FAULT_KINDS], n_injected, n_syncs_after_failure;
static ino_t failed[MAX_FAILED];
static unsigned n_failed;
static bool no_ring;

int io_uring_submit(struct io_uring *ring);
int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p);

void fault_arm(enum fault_kind kind, uint64_t nth, uint64_t n_times, int result, long part)
{
	pthread_mutex_lock(&lock);
	plans[kind].armed = true;
	plans[kind].nth = counts[kind] + nth;
	plans[kind].n_times = n_times;
	plans[kind].result = result;
	plans[kind].part = part;
	pthread_mutex_unlock(&lock);
}

void fault_disarm(void)
{
	pthread_mutex_lock(&lock);
	memset(plans, 0, sizeof plans);
	memset(counts, 0, sizeof counts);
	n_failed = 0;
	n_injected = n_syncs_after_failure = 0;
	pthread_mutex_unlock(&lock);
}

static uint64_t locked(const uint64_t *value)
{
	pthread_mutex_lock(&lock);
	uint64_t v = *value;
	pthread_mutex_unlock(&lock);
	return v;
}

uint64_t fault_count(enum fault_kind kind) { return locked(&counts[kind]); }
uint64_t fault_n_injected(void) { return locked(&n_injected); }
uint64_t fault_n_syncs_after_failure(void) { return locked(&n_syncs_after_failure); }

__attribute__((constructor)) static void fault_from_environment(void)
{
	static const char *const names[N_FAULT_KINDS] = {"write", "fsync", "submit", "setup", "truncate"};
	const char *text = getenv("KD_FAULT");
	char name[16];
	unsigned long long nth = 1, n_times = 1;
	int result = 0;
	long part = 0;
	if (!text || sscanf(text, "%15[a-z]:%llu:%d:%llu:%ld", name, &nth, &result, &n_times, &part) < 3)
		return;
	for (int k = 0; k < N_FAULT_KINDS; k++)
		if (strcmp(name, names[k]) == 0)
			fault_arm((enum fault_kind)k, nth, n_times, result, part);
}

// Counts one operation; true when it is to fail (or be short).
static bool fault_hit(enum fault_kind kind, int *ret_result, long *ret_part)
{
	pthread_mutex_lock(&lock);
	uint64_t n = ++counts[kind];
	bool hit = plans[kind].armed && n >= plans[kind].nth && n - plans[kind].nth < plans[kind].n_times;
	*ret_result = plans[kind].result;
	*ret_part = plans[kind].part;
	n_injected += hit;
	pthread_mutex_unlock(&lock);
	return hit;
}

// Keeps the books on fsyncs of shards under their final names.
static void fault_note_sync(int fd, bool fails)
{
	char link[64], path[1024];
	struct stat st;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, sizeof path - 1);
	if (n < 6 || memcmp(path + n - 6, ".shard", 6) != 0 || fstat(fd, &st) < 0)
		return;
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < n_failed; i++)
		n_syncs_after_failure += failed[i] == st.st_ino;
	if (fails && n_failed < MAX_FAILED)
		failed[n_failed++] = st.st_ino;
	pthread_mutex_unlock(&lock);
}

static bool is_final(int result)
{
	return result < 0 && result != -EINTR && result != -EAGAIN;
}

static size_t shortened(size_t n, long part)
{
	size_t k = part < 0 ? (size_t)-part : (size_t)part;
	if (part < 0)
		k = k < n ? n - k : n;
	return k && k < n ? k : n;
}

static ssize_t real_pwrite(int fd, const void *data, size_t n, off_t offset)
{
	static ssize_t (*real)(int, const void *, size_t, off_t);
	if (!real)
		real = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
	return real(fd, data, n, offset);
}

static void sqe_inject(struct io_uring_sqe *sqe, int result)
{
	uint64_t user_data = sqe->user_data;
	memset(sqe, 0, sizeof *sqe);
	sqe->opcode = IORING_OP_NOP;
	sqe->fd = -1;
	sqe->rw_flags = NOP_INJECT_RESULT;
	sqe->len = (unsigned)result;
	sqe->user_data = user_data;
}

static void sqe_alter(struct io_uring_sqe *sqe)
{
	int result;
	long part;
	bool is_write = sqe->opcode == IORING_OP_WRITE, is_sync = sqe->opcode == IORING_OP_FSYNC;
	bool hit = (is_write && fault_hit(FAULT_WRITE, &result, &part)) || (is_sync && fault_hit(FAULT_FSYNC, &result, &part));
	if (is_sync)
		fault_note_sync(sqe->fd, hit && is_final(result));
	if (!hit)
		return;
	if (is_write && result == 0) {
		sqe->len = (unsigned)shortened(sqe->len, part);
		return;
	}
	if (is_write && part && real_pwrite(sqe->fd, (const void *)(uintptr_t)sqe->addr, shortened(sqe->len, part), (off_t)sqe->off) < 0)
		abort();
	sqe_inject(sqe, result);
}

int io_uring_submit(struct io_uring *ring)
{
	static int (*real)(struct io_uring *);
	int result;
	long part;
	if (!real)
		real = (int (*)(struct io_uring *))dlsym(RTLD_NEXT, "io_uring_submit");
	if (fault_hit(FAULT_SUBMIT, &result, &part))
		return result;
	for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++)
		sqe_alter(&ring->sq.sqes[i & *ring->sq.kring_mask]);
	return real(ring);
}

int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
	static int (*real)(unsigned, struct io_uring *, struct io_uring_params *);
	int result;
	long part;
	if (!real)
		real = (int (*)(unsigned, struct io_uring *, struct io_uring_params *))dlsym(RTLD_NEXT, "io_uring_queue_init_params");
	if (fault_hit(FAULT_SETUP, &result, &part))
		return result;
	return no_ring ? -ENOSYS : real(entries, ring, p);
}

bool fault_ring_works(void)
{
	struct io_uring ring;
	struct io_uring_params p = {0};
	struct io_uring_cqe *cqe = NULL;
	no_ring = true;
	if (getenv("KD_NO_RING"))
		return false;
	no_ring = false;
	if (io_uring_queue_init_params(4, &ring, &p) < 0)
		return false;
	sqe_inject(io_uring_get_sqe(&ring), -ENOSPC);
	no_ring = io_uring_submit(&ring) != 1 || io_uring_wait_cqe(&ring, &cqe) < 0 || cqe->res != -ENOSPC;
	io_uring_queue_exit(&ring);
	return !no_ring;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
	int result;
	long part;
	if (!fault_hit(FAULT_WRITE, &result, &part))
		return real_pwrite(fd, data, n, offset);
	if (result == 0)
		return real_pwrite(fd, data, shortened(n, part), offset);
	if (part && real_pwrite(fd, data, shortened(n, part), offset) < 0)
		abort();
	errno = -result;
	return -1;
}

int fsync(int fd)
{
	static int (*real)(int);
	int result;
	long part;
	if (!real)
		real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
	bool hit = fault_hit(FAULT_FSYNC, &result, &part);
	fault_note_sync(fd, hit && is_final(result));
	if (!hit)
		return real(fd);
	errno = -result;
	return -1;
}

int ftruncate(int fd, off_t length)
{
	static int (*real)(int, off_t);
	int result;
	long part;
	if (!real)
		real = (int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate");
	if (!fault_hit(FAULT_TRUNCATE, &result, &part))
		return real(fd, length);
	errno = -result;
	return -1;
}
