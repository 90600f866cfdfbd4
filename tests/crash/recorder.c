// SPDX-License-Identifier: Apache-2.0
// Stands before libc. Files are known by number, names by a log of their own; both are replayed.
#include "tests/crash/recorder.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_FILES 4096
#define MAX_FDS 4096
#define SECTOR 512u
#define NAME_BYTES 32

enum kind { OP_WRITE, OP_TRUNCATE, OP_FSYNC, OP_FSYNC_FAILED, OP_LINK, OP_RENAME, OP_UNLINK, OP_DIRECTORY_FSYNC, OP_MARK };

struct op {
	enum kind kind;
	int file;                        // of the first four
	uint64_t offset, n;              // OP_MARK: n
	uint8_t *data;
	char name[NAME_BYTES], other[NAME_BYTES];        // OP_LINK: name -> file; OP_RENAME: name -> other
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct op *ops;
static size_t n_ops, capacity;
static struct { char name[NAME_BYTES]; int file; } names[MAX_FILES];
static int n_files, n_names, directory_fd = -1, fd_file[MAX_FDS];
static char watched[512];
static bool active, held;
static unsigned n_waiting, percent[3];
static uint64_t random_state;

#define REAL(name, type, ...) \
	static type (*real)(__VA_ARGS__); \
	if (!real) \
		real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "recorder: %s: %s\n", what, strerror(errno));
	abort();
}

static uint64_t mix(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static struct op *push(enum kind kind, int file)
{
	if (n_ops == capacity) {
		capacity = capacity ? 2 * capacity : 1024;
		ops = realloc(ops, capacity * sizeof *ops);
		must(ops, "memory");
	}
	ops[n_ops] = (struct op){.kind = kind, .file = file};
	return &ops[n_ops++];
}

static bool hit(int which)
{
	return percent[which] && mix(&random_state) % 100 < percent[which];
}

static int file_of(int fd)
{
	return active && fd >= 0 && fd < MAX_FDS ? fd_file[fd] - 1 : -1;
}

static int name_find(const char *name)
{
	for (int i = 0; i < n_names; i++)
		if (strcmp(names[i].name, name) == 0)
			return i;
	return -1;
}

static void gate(int file)
{
	while (held && file >= 0) {
		n_waiting++;
		pthread_cond_wait(&changed, &lock);
		n_waiting--;
	}
}

// ---- what the store calls

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
	REAL(pwrite, ssize_t, int, const void *, size_t, off_t);
	pthread_mutex_lock(&lock);
	int file = file_of(fd);
	gate(file);
	if (file >= 0 && hit(1)) {
		pthread_mutex_unlock(&lock);
		errno = ENOSPC;
		return -1;
	}
	if (file >= 0 && n > 1 && hit(2))
		n = 1 + mix(&random_state) % (n - 1);
	ssize_t k = real(fd, data, n, offset);
	if (k < 0 && errno == EINVAL && file >= 0)               // O_DIRECT and a length of our choosing
		k = real(fd, data, n = (n + 4095) / 4096 * 4096, offset);
	if (file >= 0 && k > 0) {
		struct op *op = push(OP_WRITE, file);
		op->offset = (uint64_t)offset;
		op->n = (uint64_t)k;
		op->data = malloc((size_t)k);
		must(op->data, "memory");
		memcpy(op->data, data, (size_t)k);
	}
	pthread_mutex_unlock(&lock);
	return k;
}

int ftruncate(int fd, off_t length)
{
	REAL(ftruncate, int, int, off_t);
	pthread_mutex_lock(&lock);
	int rc = real(fd, length), file = file_of(fd);
	if (file >= 0 && rc == 0)
		push(OP_TRUNCATE, file)->n = (uint64_t)length;
	pthread_mutex_unlock(&lock);
	return rc;
}

int fsync(int fd)
{
	REAL(fsync, int, int);
	pthread_mutex_lock(&lock);
	int file = file_of(fd), rc = 0;
	gate(file);
	if (file >= 0 && hit(0)) {
		push(OP_FSYNC_FAILED, file);
		errno = EIO;
		rc = -1;
	} else if (file >= 0) {
		push(OP_FSYNC, file);
	} else if (active && fd == directory_fd) {
		push(OP_DIRECTORY_FSYNC, -1);
	} else {
		rc = real(fd);
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

static void opened(int fd, int at, const char *name, bool created)
{
	struct stat a, b;
	if (!active || fd < 0 || fd >= MAX_FDS)
		return;
	fd_file[fd] = 0;
	if (strcmp(name, watched) == 0)
		directory_fd = fd;
	if (at < 0 || fstat(at, &a) < 0 || stat(watched, &b) < 0 || a.st_ino != b.st_ino || strcmp(name, ".") == 0 ||
	    strcmp(name, "lock") == 0)
		return;
	int i = name_find(name);
	if (i < 0 && created) {
		must(n_names < MAX_FILES && strlen(name) < NAME_BYTES, "too many files");
		i = n_names++;
		strcpy(names[i].name, name);
		names[i].file = n_files++;
		strcpy(push(OP_LINK, names[i].file)->name, name);
	}
	fd_file[fd] = i < 0 ? 0 : names[i].file + 1;
}

int openat(int at, const char *name, int flags, ...)
{
	REAL(openat, int, int, const char *, int, ...);
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	pthread_mutex_lock(&lock);
	int fd = real(at, name, flags, mode);
	opened(fd, at, name, flags & O_CREAT);
	pthread_mutex_unlock(&lock);
	return fd;
}

// What a fortified openat without a mode becomes.
int __openat_2(int at, const char *name, int flags);
int __openat_2(int at, const char *name, int flags)
{
	return openat(at, name, flags);
}

int open(const char *name, int flags, ...)
{
	REAL(open, int, const char *, int, ...);
	va_list arguments;
	va_start(arguments, flags);
	mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	pthread_mutex_lock(&lock);
	int fd = real(name, flags, mode);
	opened(fd, -1, name, false);
	pthread_mutex_unlock(&lock);
	return fd;
}

int close(int fd)
{
	REAL(close, int, int);
	pthread_mutex_lock(&lock);
	if (fd >= 0 && fd < MAX_FDS)
		fd_file[fd] = 0;
	if (fd == directory_fd)
		directory_fd = -1;
	int rc = real(fd);
	pthread_mutex_unlock(&lock);
	return rc;
}

static void name_remove(int i)
{
	if (i >= 0)
		names[i] = names[--n_names];
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
	REAL(renameat, int, int, const char *, int, const char *);
	pthread_mutex_lock(&lock);
	int rc = real(from_fd, from, to_fd, to), i = active && rc == 0 ? name_find(from) : -1;
	if (i >= 0) {
		struct op *op = push(OP_RENAME, -1);
		strcpy(op->name, from);
		strcpy(op->other, to);
		name_remove(name_find(to));
		strcpy(names[name_find(from)].name, to);
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

int unlinkat(int fd, const char *name, int flags)
{
	REAL(unlinkat, int, int, const char *, int);
	pthread_mutex_lock(&lock);
	int rc = real(fd, name, flags);
	if (active && rc == 0 && name_find(name) >= 0) {
		strcpy(push(OP_UNLINK, -1)->name, name);
		name_remove(name_find(name));
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

ssize_t getrandom(void *data, size_t n, unsigned flags)
{
	REAL(getrandom, ssize_t, void *, size_t, unsigned);
	if (!active)
		return real(data, n, flags);
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < n; i++)
		((uint8_t *)data)[i] = (uint8_t)mix(&random_state);
	pthread_mutex_unlock(&lock);
	return (ssize_t)n;
}

int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p);
int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
	(void)entries;
	(void)ring;
	(void)p;
	return -EPERM;
}

// ---- what the test calls

void recorder_start(const char *directory, uint64_t seed)
{
	pthread_mutex_lock(&lock);
	must(strlen(directory) < sizeof watched, "a long name");
	strcpy(watched, directory);
	random_state = seed;
	memset(percent, 0, sizeof percent);
	memset(fd_file, 0, sizeof fd_file);
	active = true;
	pthread_mutex_unlock(&lock);
}

void recorder_stop(void)
{
	pthread_mutex_lock(&lock);
	active = held = false;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

void recorder_done(void)
{
	for (size_t i = 0; i < n_ops; i++)
		free(ops[i].data);
	free(ops);
	ops = NULL;
	n_ops = capacity = 0;
	n_files = n_names = 0;
}

void recorder_faults(unsigned fsync_percent, unsigned write_percent, unsigned short_percent)
{
	pthread_mutex_lock(&lock);
	percent[0] = fsync_percent;
	percent[1] = write_percent;
	percent[2] = short_percent;
	pthread_mutex_unlock(&lock);
}

void recorder_hold(bool hold)
{
	pthread_mutex_lock(&lock);
	held = hold;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

bool recorder_waiting(void)
{
	pthread_mutex_lock(&lock);
	bool waiting = n_waiting > 0;
	pthread_mutex_unlock(&lock);
	return waiting;
}

void recorder_mark(uint64_t acknowledged)
{
	pthread_mutex_lock(&lock);
	push(OP_MARK, -1)->n = acknowledged;
	pthread_mutex_unlock(&lock);
}

size_t recorder_length(void)
{
	pthread_mutex_lock(&lock);
	size_t n = n_ops;
	pthread_mutex_unlock(&lock);
	return n;
}

void recorder_marks(size_t at, void (*each)(void *arg, uint64_t acknowledged), void *arg)
{
	for (size_t i = 0; i < at; i++)
		if (ops[i].kind == OP_MARK)
			each(arg, ops[i].n);
}

// ---- images

struct content { uint8_t *bytes; uint64_t n, capacity; };

static void content_resize(struct content *c, uint64_t n)
{
	if (n > c->capacity) {
		c->capacity = n * 2;
		c->bytes = realloc(c->bytes, (size_t)c->capacity);
		must(c->bytes, "memory");
	}
	if (n > c->n)
		memset(c->bytes + c->n, 0, (size_t)(n - c->n));
	c->n = n;
}

// Sectors whose bit of `mask` (cycled) is 0 stay as they were.
static void content_apply(struct content *c, const struct op *op, uint64_t mask)
{
	if (op->kind == OP_TRUNCATE) {
		content_resize(c, op->n);
		return;
	}
	for (uint64_t at = 0; at < op->n;) {
		uint64_t offset = op->offset + at, k = SECTOR - offset % SECTOR;
		k = k < op->n - at ? k : op->n - at;
		if (mask >> (offset / SECTOR % 64) & 1) {
			if (offset + k > c->n)
				content_resize(c, offset + k);
			memcpy(c->bytes + offset, op->data + at, (size_t)k);
		}
		at += k;
	}
}

static bool is_content(const struct op *op, int file)
{
	return op->file == file && (op->kind == OP_WRITE || op->kind == OP_TRUNCATE);
}

// What a file may hold: stable is what precedes the last good fsync, but for what a failed one put in doubt.
static void file_image(int file, size_t at, uint64_t *state, struct content *c)
{
	size_t synced = 0, doubtful = 0, n_loose = 0;
	for (size_t i = 0; i < at; i++)
		if (ops[i].file == file && ops[i].kind == OP_FSYNC)
			synced = i;
		else if (ops[i].file == file && ops[i].kind == OP_FSYNC_FAILED)
			doubtful = i;
	size_t sure_from = 0;            // writes between the last good fsync before a failure and the failure are in doubt
	for (size_t i = 0; i < doubtful; i++)
		if (ops[i].file == file && ops[i].kind == OP_FSYNC)
			sure_from = i;
	size_t *loose = malloc((at + 1) * sizeof *loose);
	must(loose, "memory");
	for (size_t i = 0; i < at; i++) {
		if (!is_content(&ops[i], file))
			continue;
		bool doubt = doubtful && i > sure_from && i < doubtful;
		if (i < synced && !doubt)
			content_apply(c, &ops[i], UINT64_MAX);
		else if (doubt && i < synced)
			content_apply(c, &ops[i], mix(state) % 2 ? UINT64_MAX : mix(state));
		else
			loose[n_loose++] = i;
	}
	bool shuffled = mix(state) % 2;
	for (size_t i = 0; i < n_loose; i++) {
		size_t k = shuffled ? i + mix(state) % (n_loose - i) : i, next = loose[k];
		loose[k] = loose[i];
		uint64_t choice = mix(state) % 4;
		if (choice)                // kept, kept, torn; 0: dropped
			content_apply(c, &ops[next], choice == 3 ? mix(state) : UINT64_MAX);
	}
	free(loose);
}

static void file_write(const char *directory, const char *name, const struct content *c)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	FILE *f = fopen(path, "we");
	must(f && (!c->n || fwrite(c->bytes, 1, (size_t)c->n, f) == c->n), path);
	must(fclose(f) == 0, path);
}

// Names: what precedes the last fsync of the directory holds; of later changes any may be missing.
void recorder_image(size_t at, uint64_t seed, const char *directory)
{
	static struct { char name[NAME_BYTES]; int file; } there[MAX_FILES];
	int n = 0;
	size_t synced = 0;
	for (size_t i = 0; i < at; i++)
		if (ops[i].kind == OP_DIRECTORY_FSYNC)
			synced = i;
	for (size_t i = 0; i < at; i++) {
		const struct op *op = &ops[i];
		if ((op->kind != OP_LINK && op->kind != OP_RENAME && op->kind != OP_UNLINK) || (i > synced && mix(&seed) % 3 == 0))
			continue;
		int from = -1, to = -1;
		for (int k = 0; k < n; k++) {
			from = strcmp(there[k].name, op->name) == 0 ? k : from;
			to = strcmp(there[k].name, op->other) == 0 ? k : to;
		}
		if (op->kind == OP_LINK && from < 0) {
			strcpy(there[n].name, op->name);
			there[n++].file = op->file;
		} else if (op->kind == OP_RENAME && from >= 0) {
			strcpy(there[from].name, op->other);
			if (to >= 0)
				there[to] = there[--n];
		} else if (op->kind == OP_UNLINK && from >= 0) {
			there[from] = there[--n];
		}
	}
	for (int k = 0; k < n; k++) {
		struct content c = {0};
		file_image(there[k].file, at, &seed, &c);
		file_write(directory, there[k].name, &c);
		free(c.bytes);
	}
}
