// SPDX-License-Identifier: Apache-2.0
// A thread takes one shard after the other. Its one complication is the newest shard, to which another process may be writing: blocks of a
// write under way become visible in any order, so what is damaged there is looked at again before it counts.
#include "daemon/store/survey.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/directory.h"
#include "daemon/store/packed.h"
#include "daemon/store/part.h"
#include "daemon/store/groups.h"
#include "daemon/store/scan.h"
#include "daemon/store/sidecar.h"
#include "daemon/store/stream.h"

#define LOOKS 4                  // at what is damaged in the newest shard, 50 ms apart: no write takes longer than their sum
#define PLACE_MAX 64

struct survey {
	const struct survey_options *options;
	struct directory directory;
	uint32_t *ids;
	size_t n_ids;
	uint64_t all_bytes;
	_Atomic size_t next;             // of ids: the next shard nobody has taken
	_Atomic uint64_t done_bytes;
	pthread_mutex_t lock;            // the rest; and visits of damage
	pthread_cond_t changed;
	unsigned n_running;
	int result;                      // not 0: over
	atomic_bool over;
	struct error error;
	struct survey_totals totals;
};

// One shard, as one thread sees it.
struct pass {
	struct survey *survey;
	unsigned thread;
	struct stream *stream;
	uint32_t id;
	bool newest;
	struct scan scan;
	struct sidecar found;            // what an index of it should say
	uint64_t *damage;                // begin and end of places without good frames, ascending
	size_t n_damage, damage_capacity;
	struct survey_totals totals;     // of this shard
};

static int survey_end(struct survey *v, int rc, const struct error *err)
{
	pthread_mutex_lock(&v->lock);
	if (!v->result) {
		v->result = rc;
		if (err)
			v->error = *err;
	}
	atomic_store(&v->over, true);
	pthread_mutex_unlock(&v->lock);
	return rc;
}

static int memory_out(struct pass *p)
{
	struct error err;
	return survey_end(p->survey, error_set(&err, ERROR_MEMORY, NULL, "no memory to read shard %08" PRIx32, p->id), &err);
}

// Reports damage: `index` of the index file, else at the offset of the shard.
static int damage_report(struct pass *p, bool index, uint64_t offset, uint64_t n_bytes, const char *message)
{
	struct survey *v = p->survey;
	char place[PLACE_MAX];
	if (index)
		snprintf(place, sizeof place, "%08" PRIx32 ".index", p->id);
	else
		snprintf(place, sizeof place, "%08" PRIx32 ".shard:%" PRIu64, p->id, offset);
	struct survey_item item = {
		.thread = p->thread, .shard = p->id, .place = place, .offset = offset, .n_bytes = n_bytes, .message = message};
	p->totals.n_damaged++;
	pthread_mutex_lock(&v->lock);
	int rc = v->result;
	if (!rc)
		rc = v->result = v->options->visit(v->options->arg, &item);
	if (rc)
		atomic_store(&v->over, true);
	pthread_mutex_unlock(&v->lock);
	return rc;
}

static int damage_note(struct pass *p, uint64_t offset, uint64_t n_bytes)
{
	if (p->n_damage + 2 > p->damage_capacity) {
		size_t capacity = p->damage_capacity ? 2 * p->damage_capacity : 64;
		uint64_t *more = reallocarray(p->damage, capacity, sizeof *more);
		if (!more)
			return memory_out(p);
		p->damage = more;
		p->damage_capacity = capacity;
	}
	p->damage[p->n_damage++] = offset;
	p->damage[p->n_damage++] = offset + n_bytes;
	return 0;
}

// A frame that holds: is the record in it what its frame says, and good?
static int pass_record(struct pass *p, const struct scan_item *item)
{
	struct survey *v = p->survey;
	const struct shard_frame *f = &item->frame;
	struct record *record = NULL;
	struct error err;
	char place[PLACE_MAX];
	int rc = packed_decode(item->record, f->record_bytes, &record, &err);
	if (rc == 0 && memcmp(record_key(record), &f->key, sizeof f->key) != 0)
		rc = error_set(&err, ERROR_CORRUPT, NULL, "the record is not the one its frame names");
	if (rc != -ENOMEM && v->options->indexes && sidecar_append(&p->found, f, rc == 0 ? record : NULL) < 0)
		rc = -ENOMEM;
	if (rc == 0 && v->options->rows)
		rc = record_check(record, &err);
	if (rc == -ENOMEM) {
		rc = memory_out(p);
	} else if (rc < 0) {
		rc = damage_report(p, false, f->offset, item->n_bytes, err.message);
	} else {
		p->totals.n_records++;
		p->totals.frame_bytes += item->n_bytes - f->record_bytes;
		snprintf(place, sizeof place, "%08" PRIx32 ".shard:%" PRIu64, p->id, f->offset);
		struct survey_item visit = {
			.thread = p->thread, .shard = p->id, .place = place, .offset = f->offset,
			.n_bytes = item->n_bytes, .stored_bytes = f->record_bytes, .record = record};
		rc = v->options->visit(v->options->arg, &visit);
		if (rc)
			survey_end(v, rc, NULL);
	}
	record_unref(record);
	return rc;
}

// Damage in a shard that may be written to: the scan as it was before, with what is in the file by now.
static bool pass_look_again(struct pass *p, unsigned *n_looks, uint64_t position, uint64_t number)
{
	if (!p->newest || ++*n_looks >= LOOKS)
		return false;
	nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
	int fd = p->scan.fd;
	bool sealed = p->scan.sealed;
	stream_stop(p->stream);
	scan_done(&p->scan);
	if (scan_init_stream(&p->scan, fd, p->stream, p->id, NULL) < 0)
		return false;
	p->scan.position = position;
	p->scan.next_number = number;
	p->scan.sealed = sealed;
	return true;
}

static int pass_damage(struct pass *p, const struct scan_item *item)
{
	char message[128];
	if (item->kind == SCAN_DAMAGE)
		snprintf(message, sizeof message, "%" PRIu64 " bytes are damaged, %" PRIu64 " records lost", item->n_bytes, item->n_lost);
	else
		snprintf(message, sizeof message, "%" PRIu64 " bytes at the end are damaged", item->n_bytes);
	int rc = damage_note(p, item->offset, item->n_bytes);
	return rc ? rc : damage_report(p, false, item->offset, item->n_bytes, message);
}

static int pass_frames(struct pass *p)
{
	struct survey *v = p->survey;
	struct scan_item item;
	struct error err;
	unsigned n_looks = 0;
	int rc = 0;
	if (p->scan.header.damaged)
		rc = damage_report(p, false, 0, SHARD_HEADER_BYTES, "the header is damaged, its other copy holds");
	while (!rc && !atomic_load(&v->over)) {
		uint64_t position = p->scan.position, number = p->scan.next_number;
		rc = scan_next(&p->scan, &item, &err);
		if (rc == -ENOMEM)
			return survey_end(v, rc, &err);
		if (rc < 0)              // the disk gave up on it
			return damage_report(p, false, position, 0, err.message);
		bool bad = item.kind == SCAN_DAMAGE || item.kind == SCAN_TORN;
		if (bad && pass_look_again(p, &n_looks, position, number))
			continue;
		if (item.kind == SCAN_RECORD)
			rc = pass_record(p, &item);
		else if (item.kind == SCAN_TORN && p->newest && !p->scan.sealed)
			p->totals.torn_bytes += item.n_bytes;
		else if (bad)
			rc = pass_damage(p, &item);
		if (item.kind == SCAN_END)
			break;
		atomic_fetch_add(&v->done_bytes, item.n_bytes);
	}
	return rc;
}

static bool entry_is_damaged(const struct pass *p, uint64_t offset)
{
	for (size_t i = 0; i < p->n_damage; i += 2)
		if (offset >= p->damage[i] && offset < p->damage[i + 1])
			return true;
	return false;
}

// Both ascend. What the shard has lost the index may still know.
static bool index_agrees(const struct pass *p, const struct sidecar *index)
{
	size_t i = 0;
	for (size_t k = 0; k < index->n; k++) {
		const struct sidecar_entry *e = &index->entries[k], *f = i < p->found.n ? &p->found.entries[i] : NULL;
		if (!f || f->offset != e->offset) {
			if (!entry_is_damaged(p, e->offset))
				return false;
			continue;
		}
		if (memcmp(&f->key, &e->key, sizeof f->key) != 0 || f->record_bytes != e->record_bytes || f->shape != e->shape ||
			f->group != e->group)
			return false;
		i++;
	}
	return i == p->found.n;
}

static int pass_index(struct pass *p)
{
	struct sidecar index;
	struct error err;
	struct stat st;
	char name[DIRECTORY_NAME_MAX];
	directory_index_name(p->id, name);
	if (!p->scan.sealed)             // if there is one by now, it is of a larger file
		return 0;
	if (fstatat(p->survey->directory.fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT) {
		p->totals.n_unindexed = 1;
		return 0;
	}
	p->totals.index_bytes += (uint64_t)st.st_size;
	if (!p->survey->options->indexes)
		return 0;
	// It is of the file up to the seal: beyond lies nothing, or for a moment what the writer had set aside.
	int rc = sidecar_read(&p->survey->directory, p->id, p->scan.header.seed, p->scan.position, &index, &err);
	if (rc == -ENOENT)
		return 0;
	if (rc == -ENOMEM)
		return survey_end(p->survey, rc, &err);
	if (rc < 0)
		return damage_report(p, true, 0, 0, err.message);
	bool agrees = index_agrees(p, &index);
	sidecar_done(&index);
	return agrees ? 0 : damage_report(p, true, 0, 0, "the index does not say what the shard holds");
}

static void totals_add(struct survey *v, const struct survey_totals *t)
{
	struct survey_totals *sum = &v->totals;
	pthread_mutex_lock(&v->lock);
	sum->n_shards += t->n_shards;
	sum->n_sealed += t->n_sealed;
	sum->n_records += t->n_records;
	sum->n_damaged += t->n_damaged;
	sum->shard_bytes += t->shard_bytes;
	sum->frame_bytes += t->frame_bytes;
	sum->index_bytes += t->index_bytes;
	sum->n_unindexed += t->n_unindexed;
	sum->torn_bytes += t->torn_bytes;
	sum->n_vanished += t->n_vanished;
	pthread_mutex_unlock(&v->lock);
}

static void pass_shard(struct pass *p)
{
	struct survey *v = p->survey;
	struct error err;
	char name[DIRECTORY_NAME_MAX];
	directory_shard_name(p->id, name);
	p->totals = (struct survey_totals){0};
	p->found.n = p->n_damage = 0;
	int fd = openat(v->directory.fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 && errno == ENOENT) {
		p->totals.n_vanished = 1;
	} else if (fd < 0) {
		(void)error_system(&err, errno, NULL, "cannot open");
		damage_report(p, false, 0, 0, err.message);
	} else {
		int rc = scan_init_stream(&p->scan, fd, p->stream, p->id, &err);
		uint64_t size = p->scan.size;
		p->totals.n_shards = 1;
		p->totals.shard_bytes = size;
		if (rc < 0)
			damage_report(p, false, 0, 0, err.message);
		else
			rc = pass_frames(p);
		p->totals.n_sealed = p->scan.sealed;
		if (rc == 0 && !atomic_load(&v->over))
			pass_index(p);
		stream_stop(p->stream);
		scan_done(&p->scan);
		close(fd);
	}
	totals_add(v, &p->totals);
}

static void *survey_thread(void *arg)
{
	struct pass *p = arg;
	struct survey *v = p->survey;
	struct error err;
	int rc = stream_open(&p->stream, &err);
	if (rc < 0)
		survey_end(v, rc, &err);
	for (size_t i; rc == 0 && !atomic_load(&v->over) && (i = atomic_fetch_add(&v->next, 1)) < v->n_ids;) {
		p->id = v->ids[i];
		p->newest = i == v->n_ids - 1;
		pass_shard(p);
	}
	p->stream = stream_close(p->stream);
	sidecar_done(&p->found);
	free(p->damage);
	pthread_mutex_lock(&v->lock);
	v->n_running--;
	pthread_cond_signal(&v->changed);
	pthread_mutex_unlock(&v->lock);
	return NULL;
}

static uint64_t bytes_of_all(const struct survey *v)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < v->n_ids; i++) {
		char name[DIRECTORY_NAME_MAX];
		struct stat st;
		directory_shard_name(v->ids[i], name);
		if (fstatat(v->directory.fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			sum += (uint64_t)st.st_size;
	}
	return sum;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void survey_wait(struct survey *v)
{
	const struct survey_options *o = v->options;
	pthread_mutex_lock(&v->lock);
	while (v->n_running) {
		struct timespec until;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 100 * 1000 * 1000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&v->changed, &v->lock, &until);
		if (o->progress)
			o->progress(o->arg, atomic_load(&v->done_bytes), v->all_bytes);
	}
	pthread_mutex_unlock(&v->lock);
}

// Signals are the caller's thread's.
static void survey_threads(struct survey *v)
{
	unsigned n = v->options->n_threads ? v->options->n_threads : 1;
	n = n > SURVEY_MAX_THREADS ? SURVEY_MAX_THREADS : n > v->n_ids ? (unsigned)v->n_ids : n;
	struct pass *passes = calloc(n ? n : 1, sizeof *passes);
	pthread_t threads[SURVEY_MAX_THREADS];
	unsigned n_started = 0;
	struct error err;
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	v->n_running = n;
	for (; passes && n_started < n; n_started++) {
		passes[n_started] = (struct pass){.survey = v, .thread = n_started};
		if (pthread_create(&threads[n_started], NULL, survey_thread, &passes[n_started]))
			break;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!passes || n_started < n)
		survey_end(v, error_set(&err, ERROR_MEMORY, NULL, "cannot start %u threads", n), &err);
	pthread_mutex_lock(&v->lock);
	v->n_running -= n - n_started;
	pthread_mutex_unlock(&v->lock);
	survey_wait(v);
	for (unsigned i = 0; i < n_started; i++)
		pthread_join(threads[i], NULL);
	free(passes);
}

int survey_run(const struct survey_options *o, struct survey_totals *ret_totals, struct error *err)
{
	struct survey v = {.options = o, .directory = {.fd = -1, .lock = -1}, .lock = PTHREAD_MUTEX_INITIALIZER,
			   .changed = PTHREAD_COND_INITIALIZER};
	double began = now();
	int rc = directory_open(&v.directory, o->directory, true, err);
	if (rc == 0)
		rc = directory_list(&v.directory, &v.ids, &v.n_ids, err);
	if (rc == 0) {
		v.all_bytes = bytes_of_all(&v);
		survey_threads(&v);
		rc = v.result;
		if (rc && err)
			*err = v.error;
		v.totals.seconds = now() - began;
		*ret_totals = v.totals;
	}
	free(v.ids);
	directory_close(&v.directory);
	pthread_cond_destroy(&v.changed);
	pthread_mutex_destroy(&v.lock);
	return rc;
}
