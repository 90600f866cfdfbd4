// SPDX-License-Identifier: Apache-2.0
// Stands before liburing (a submission queue entry becomes a NOP that returns what we say, kernel 6.10 or later) and before libc.
#include "tests/crash/fault.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
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
static struct { bool armed; uint64_t nth, n_times; int result, after; long part; } plans[N_FAULT_KINDS];
static uint64_t counts[N_FAULT_KINDS], n_injected, n_syncs_after_failure;
static ino_t failed[MAX_FAILED];
static unsigned n_failed;
static bool no_ring;
static int registered_file = -1;          // of the ring that registered one last

int io_uring_register_files(struct io_uring *ring, const int *files, unsigned n);
int io_uring_register_files_update(struct io_uring *ring, unsigned at, const int *files, unsigned n);
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
	plans[kind].after = 0;
	pthread_mutex_unlock(&lock);
}

void fault_follow(enum fault_kind kind, int result)
{
	pthread_mutex_lock(&lock);
	plans[kind].after = result;
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
	bool after = plans[kind].after && n - plans[kind].nth == plans[kind].n_times;
	*ret_result = after ? plans[kind].after : plans[kind].result;
	*ret_part = after ? 0 : plans[kind].part;
	hit = hit || after;
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

// Part of a write that is then said to have failed or to have been short, whatever O_DIRECT asks of lengths.
static void part_write(int fd, const void *data, size_t n, off_t offset)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int plain = open(path, O_WRONLY | O_CLOEXEC);
	if (plain < 0 || real_pwrite(plain, data, n, offset) != (ssize_t)n)
		abort();
	close(plain);
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
	bool is_write = sqe->opcode == IORING_OP_WRITE || sqe->opcode == IORING_OP_WRITE_FIXED, is_sync = sqe->opcode == IORING_OP_FSYNC;
	int fd = sqe->flags & IOSQE_FIXED_FILE ? registered_file : sqe->fd;
	bool hit = (is_write && fault_hit(FAULT_WRITE, &result, &part)) || (is_sync && fault_hit(FAULT_FSYNC, &result, &part));
	if (is_sync)
		fault_note_sync(fd, hit && is_final(result));
	if (!hit)
		return;
	size_t n = is_write && (part || result == 0) ? shortened(sqe->len, part) : 0;
	if (n)
		part_write(fd, (const void *)(uintptr_t)sqe->addr, n, (off_t)sqe->off);
	sqe_inject(sqe, result == 0 ? (int)n : result);
}

int io_uring_register_files(struct io_uring *ring, const int *files, unsigned n)
{
	int (*real)(struct io_uring *, const int *, unsigned) =
		(int (*)(struct io_uring *, const int *, unsigned))dlsym(RTLD_NEXT, "io_uring_register_files");
	registered_file = files[0];
	return real(ring, files, n);
}

int io_uring_register_files_update(struct io_uring *ring, unsigned at, const int *files, unsigned n)
{
	int (*real)(struct io_uring *, unsigned, const int *, unsigned) =
		(int (*)(struct io_uring *, unsigned, const int *, unsigned))dlsym(RTLD_NEXT, "io_uring_register_files_update");
	registered_file = files[0];
	return real(ring, at, files, n);
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
	size_t k = part || result == 0 ? shortened(n, part) : 0;
	if (k)
		part_write(fd, data, k, offset);
	errno = -result;
	return result == 0 ? (ssize_t)k : -1;
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
