// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/store_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/error.h"

static void fatal(const char *what, const struct error *err)
{
	fprintf(stderr, "fixture: %s: %s\n", what, err ? err->message : strerror(errno));
	abort();
}

static uint64_t mix(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

struct record *fixture_record(uint64_t n, uint32_t n_tokens, uint32_t top_k)
{
	static const struct content_id teacher = {.bytes = {1, 2, 3}};
	const uint32_t vocab_size = 1u << 16;
	uint64_t state = n * 1000003 + n_tokens * 17 + top_k;
	struct error err;
	uint32_t *tokens = calloc(n_tokens, sizeof *tokens);
	if (!tokens)
		fatal("memory", NULL);
	for (uint32_t i = 0; i < n_tokens; i++)
		tokens[i] = (uint32_t)mix(&state) % vocab_size;
	struct sequence s = {.tokens = tokens, .n_tokens = n_tokens};
	struct query q;
	query_init(&q);
	q.top_k = top_k;
	struct query_limits limits = {.max_tokens = n_tokens, .max_top_k = vocab_size, .vocab_size = vocab_size};
	struct record_rows *rows;
	struct record *record;
	if (query_check(&q, &s, &limits, "", &err) < 0 || record_rows_new(&teacher, vocab_size, &s, &q, &rows, &err) < 0)
		fatal("rows", &err);
	for (uint32_t i = 0; i < rows->n_rows; i++) {
		rows->max_logit[i] = 20;
		rows->lse[i] = 21;
		uint32_t id = 0;
		for (uint32_t j = 0; j < top_k; j++) {
			rows->ids[(size_t)i * top_k + j] = id += 1 + (uint32_t)(mix(&state) % (vocab_size / (top_k + 1)));
			rows->logits[(size_t)i * top_k + j] = 20 - (float)j / 16 - (j ? (float)(mix(&state) % 1024) / 16384 : 0);
		}
	}
	if (record_encode(rows, &record, &err) < 0)
		fatal("record_encode", &err);
	record_rows_free(rows);
	free(tokens);
	return record;
}

struct record *fixture_record_sized(uint64_t n)
{
	uint64_t state = n, r = mix(&state);
	if (r % 64 == 0)
		return fixture_record(n, 1024 + (uint32_t)(r >> 32) % 1024, 128);
	if (r % 8 == 0)
		return fixture_record(n, 64 + (uint32_t)(r >> 32) % 64, 32);
	return fixture_record(n, 8 + (uint32_t)(r >> 32) % 16, 1 + (uint32_t)(r >> 8) % 8);        // 8 tokens: no two numbers share a key
}

// Twice as much must be free: other tests run beside this one, and a container has 64 MiB.
void fixture_in_memory(uint64_t bytes)
{
	struct statvfs there;
	if (access("/dev/shm", W_OK) == 0 && statvfs("/dev/shm", &there) == 0 && there.f_bavail / 2 >= bytes / there.f_frsize)
		setenv("TMPDIR", "/dev/shm", 0);
}

char *fixture_directory(void)
{
	const char *base = getenv("TMPDIR");
	char path[512];
	snprintf(path, sizeof path, "%s/kdserved-store-XXXXXX", base ? base : "/tmp");
	if (!mkdtemp(path))
		fatal(path, NULL);
	return strdup(path);
}

void fixture_remove(char *directory)
{
	DIR *d = opendir(directory);
	for (struct dirent *e; d && (e = readdir(d));)
		if (e->d_name[0] != '.')
			unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	if (rmdir(directory) < 0)
		fatal(directory, NULL);
	free(directory);
}

static struct store *open_with(const struct store_options *options)
{
	struct store *s;
	struct error err;
	if (store_open(options, &s, &err) < 0)
		fatal("store_open", &err);
	return s;
}

struct store *fixture_open(const char *directory, uint64_t shard_bytes)
{
	const char *level = getenv("KD_COMPRESSION");
	return open_with(&(struct store_options){.directory = directory, .shard_bytes = shard_bytes,
		.compression = level ? atoi(level) : 0});
}

struct store *fixture_open_reader(const char *directory)
{
	return open_with(&(struct store_options){.directory = directory, .read_only = true});
}

struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool over;
	int result;
};

static void on_done(void *arg, const struct error *err)
{
	struct waiter *w = arg;
	pthread_mutex_lock(&w->lock);
	w->result = err ? error_errno(err->code) : 0;
	w->over = true;
	pthread_cond_signal(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

int fixture_append(struct store *s, struct record *record, enum store_durability durability)
{
	struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	int rc = store_append(s, record, durability, on_done, &w, NULL);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&w.lock);
	while (!w.over)
		pthread_cond_wait(&w.changed, &w.lock);
	pthread_mutex_unlock(&w.lock);
	return w.result;
}

int fixture_expect(struct store *s, struct record *record)
{
	struct record *found;
	int rc = store_find(s, record_key(record), &found, NULL);
	if (rc < 0)
		return rc;
	size_t n, k;
	const void *a = record_bytes(record, &n), *b = record_bytes(found, &k);
	rc = n == k && memcmp(a, b, n) == 0 ? 0 : -EILSEQ;
	record_unref(found);
	return rc;
}

struct store_stats fixture_stats(struct store *s)
{
	struct store_stats stats;
	store_stats(s, &stats);
	return stats;
}

static int open_in(const char *directory, const char *name, int flags)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	int fd = open(path, flags | O_CLOEXEC, 0640);
	if (fd < 0)
		fatal(path, NULL);
	return fd;
}

uint8_t *fixture_read(const char *directory, const char *name, size_t *ret_n)
{
	int fd = open_in(directory, name, O_RDONLY);
	struct stat st;
	if (fstat(fd, &st) < 0)
		fatal(name, NULL);
	uint8_t *bytes = malloc((size_t)st.st_size + 1);
	if (!bytes || read(fd, bytes, (size_t)st.st_size) != st.st_size)
		fatal(name, NULL);
	close(fd);
	*ret_n = (size_t)st.st_size;
	return bytes;
}

void fixture_write(const char *directory, const char *name, const void *bytes, size_t n)
{
	int fd = open_in(directory, name, O_WRONLY | O_CREAT | O_TRUNC);
	if (write(fd, bytes, n) != (ssize_t)n)
		fatal(name, NULL);
	close(fd);
}

void fixture_flip(const char *directory, const char *name, uint64_t bit)
{
	int fd = open_in(directory, name, O_RDWR);
	uint8_t byte;
	if (pread(fd, &byte, 1, (off_t)(bit / 8)) != 1)
		fatal(name, NULL);
	byte ^= (uint8_t)(1u << (bit % 8));
	if (pwrite(fd, &byte, 1, (off_t)(bit / 8)) != 1)
		fatal(name, NULL);
	close(fd);
}

bool fixture_exists(const char *directory, const char *name)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	return access(path, F_OK) == 0;
}

int fixture_unlink(const char *directory, const char *name)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	return unlink(path);
}

void fixture_append_range(struct store *s, uint64_t first, uint64_t n, enum store_durability durability)
{
	for (uint64_t i = first; i < first + n; i++) {
		struct record *r = fixture_record(i, 8, 4);
		if (fixture_append(s, r, durability) != 0)
			fatal("append", NULL);
		record_unref(r);
	}
}

unsigned fixture_count_found(struct store *s, uint64_t first, uint64_t n)
{
	unsigned found = 0;
	for (uint64_t i = first; i < first + n; i++) {
		struct record *r = fixture_record(i, 8, 4);
		int rc = fixture_expect(s, r);
		if (rc != 0 && rc != -ENOENT && rc != -EBADMSG)
			fatal("neither found nor absent", NULL);
		found += rc == 0;
		record_unref(r);
	}
	return found;
}

unsigned fixture_walk(struct store *s, unsigned *ret_damaged, char first_place[96])
{
	struct store_cursor c = {0};
	struct record *r;
	struct error err;
	char place[96];
	unsigned n = 0;
	*ret_damaged = 0;
	first_place[0] = '\0';
	for (;;) {
		int rc = store_next(s, &c, &r, place, &err);
		if (rc == -ENOENT)
			return n;
		if (rc != 0 && rc != -EBADMSG)
			fatal("walk", &err);
		if ((rc == 0) != (r != NULL))
			fatal("a record and an error", NULL);
		if (rc < 0 && (*ret_damaged)++ == 0)
			strcpy(first_place, place);
		n += rc == 0;
		record_unref(r);
	}
}

char *fixture_copy(const char *directory)
{
	char *to = fixture_directory();
	DIR *d = opendir(directory);
	if (!d)
		fatal(directory, NULL);
	for (struct dirent *e; (e = readdir(d));) {
		size_t n;
		if (e->d_name[0] == '.')
			continue;
		uint8_t *bytes = fixture_read(directory, e->d_name, &n);
		fixture_write(to, e->d_name, bytes, n);
		free(bytes);
	}
	closedir(d);
	return to;
}
