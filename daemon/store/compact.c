// SPDX-License-Identifier: Apache-2.0
// Its one complication is the order of things: every record that stays is in a shard that is whole and on the disk before any shard it was
// in is removed. A process killed anywhere leaves, at worst, second copies and a temporary file.
#include "daemon/store/upkeep.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/error.h"
#include "common/record.h"
#include "daemon/store/recover.h"
#include "daemon/store/retention.h"
#include "daemon/store/rewrite.h"
#include "daemon/store/surplus.h"
#include "daemon/store/survey.h"

#define SHARD_BYTES (UINT64_C(256) << 20)
#define SMALL 2                          // shards of less than 1/SMALL of the wanted size are joined

struct compact_shard {
	uint32_t id;
	uint64_t n_bytes;
	int64_t written;
	uint64_t created;
	uint64_t n_damaged;
	bool unreadable;                 // its header, or the disk gave up on it: never touched
	bool rewritten;
	size_t first, n;                 // its entries
	uint64_t n_surplus, kept_bytes;
};

struct compact {
	const struct upkeep_compact *options;
	struct upkeep_compacted *result;
	struct store_parts parts;
	uint32_t next_id;
	uint64_t shard_bytes;
	struct surplus *surplus;
	struct compact_shard *shards;    // by id
	size_t n_shards;
	struct rewrite output;           // fd -1: none
	struct packer packer;
	size_t n_written, n_removed;     // shards before these are wholly in outputs begun by now; are gone, or stay
	uint64_t done_bytes, all_bytes;
};

// ---- what there is

// Recovers as any writer does, and seals the shard being written: from here on every shard is whole, sealed and on the disk.
static int compact_open(struct compact *c, struct error *err)
{
	struct tail_shard current = {.fd = -1};
	struct recovered newest = {0};
	struct tail tail;
	int rc = directory_open(&c->parts.directory, c->options->directory, false, err);
	c->parts.shards.directory = c->parts.directory.fd;
	if (rc == 0 && !(c->parts.index = index_new()))
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory for the store's index");
	if (rc == 0)
		rc = recover_shards(&c->parts, false, &current, &c->next_id, &newest, err);
	if (rc < 0 || current.fd < 0)
		return rc;
	rc = tail_init(&tail, &c->parts.directory, current.end, err);
	if (rc < 0) {
		tail_shard_done(&current);
		return rc;
	}
	rc = tail_adopt(&tail, &current);
	rc = rc < 0 ? rc : tail_seal(&tail);
	tail_done(&tail);
	return rc < 0 ? error_system(err, rc, NULL, "store %s: cannot seal the newest shard", c->options->directory) : 0;
}

static int shard_look(struct compact *c, struct compact_shard *s, struct error *err)
{
	char name[DIRECTORY_NAME_MAX];
	uint8_t block[SHARD_HEADER_BYTES];
	struct shard_header h;
	struct stat st;
	directory_shard_name(s->id, name);
	int fd = openat(c->parts.directory.fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0) {
		int rc = error_system(err, errno, NULL, "store %s: %s", c->options->directory, name);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	ssize_t n = pread(fd, block, sizeof block, 0);
	close(fd);
	s->n_bytes = (uint64_t)st.st_size;
	s->written = (int64_t)st.st_mtime;
	s->unreadable = n < 0 || shard_header_decode(block, (size_t)n, &h) < 0 || h.id != s->id;
	s->created = s->unreadable ? 0 : h.created;
	return 0;
}

static int compact_list(struct compact *c, struct error *err)
{
	uint32_t *ids = NULL;
	int rc = directory_list(&c->parts.directory, &ids, &c->n_shards, err);
	if (rc < 0)
		return rc;
	c->shards = calloc(c->n_shards ? c->n_shards : 1, sizeof *c->shards);
	if (!c->shards)
		rc = error_set(err, ERROR_MEMORY, NULL, "no memory for the list of shards");
	for (size_t i = 0; rc == 0 && i < c->n_shards; i++) {
		c->shards[i].id = ids[i];
		rc = shard_look(c, &c->shards[i], err);
		c->result->before_bytes += c->shards[i].n_bytes;
	}
	free(ids);
	c->result->n_shards = c->n_shards;
	c->result->after_bytes = c->result->before_bytes;
	return rc;
}

static int compare_shards(const void *a, const void *b)
{
	const struct compact_shard *x = a, *y = b;
	return (x->id > y->id) - (x->id < y->id);
}

static struct compact_shard *shard_of(struct compact *c, uint32_t id)
{
	return bsearch(&(struct compact_shard){.id = id}, c->shards, c->n_shards, sizeof *c->shards, compare_shards);
}

static int visit(void *arg, const struct survey_item *item)
{
	struct compact *c = arg;
	if (item->record)
		return surplus_append(c->surplus, item);
	struct compact_shard *s = shard_of(c, item->shard);
	bool index = strstr(item->place, ".index") != NULL;       // a copy of what the shard says
	if (s && !index)
		s->n_damaged++;
	if (s && !index && !item->n_bytes)
		s->unreadable = true;
	c->options->damaged(c->options->arg, item);
	return 0;
}

static void on_progress(void *arg, uint64_t done, uint64_t all)
{
	const struct compact *c = arg;
	if (c->options->progress)
		c->options->progress(c->options->arg, done, all);
}

static int compact_survey(struct compact *c, struct error *err)
{
	struct survey_options o = {.directory = c->options->directory, .n_threads = c->options->n_threads, .rows = true, .indexes = true,
				   .visit = visit, .progress = on_progress, .arg = c};
	struct survey_totals t;
	if (!(c->surplus = surplus_new()))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a list of records");
	int rc = survey_run(&o, &t, err);
	if (rc == -ENOMEM)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a list of records");
	if (rc < 0)
		return rc;
	c->result->n_records = t.n_records;
	c->result->n_damaged = t.n_damaged;
	return 0;
}

// ---- what is to be done

static bool shard_stays(const struct compact *c, const struct compact_shard *s)
{
	return s->unreadable || (s->n_damaged && !c->options->drop_damaged);
}

static void compact_count(struct compact *c)
{
	size_t n;
	const struct surplus_entry *entries = surplus_entries(c->surplus, &n);
	for (size_t i = 0; i < n; i++) {
		struct compact_shard *s = shard_of(c, entries[i].shard);
		if (!s)
			continue;
		if (!s->n++)
			s->first = i;
		s->n_surplus += entries[i].kind != SURPLUS_KEEP;
		s->kept_bytes += entries[i].kind == SURPLUS_KEEP ? shard_frame_size(entries[i].stored_bytes) : 0;
	}
}

// A shard is rewritten when something in it can go; a small one when there is another to join it with.
static int compact_plan(struct compact *c, struct error *err)
{
	struct compact_shard *small = NULL;
	for (size_t i = 0; i < c->n_shards; i++)
		if (shard_stays(c, &c->shards[i]))
			surplus_fix(c->surplus, c->shards[i].id);
	int rc = surplus_find(c->surplus, c->options->directory, !c->options->keep_contained, err);
	if (rc < 0)
		return rc;
	compact_count(c);
	for (size_t i = 0; i < c->n_shards; i++) {
		struct compact_shard *s = &c->shards[i];
		if (shard_stays(c, s)) {
			c->result->n_left++;
			continue;
		}
		s->rewritten = s->n_surplus || s->n_damaged || !s->n || c->options->compression;
		if (!s->n || s->kept_bytes >= c->shard_bytes / SMALL)
			continue;
		if (small)
			small->rewritten = s->rewritten = true;
		small = s;
	}
	for (size_t i = 0; i < c->n_shards; i++)
		c->all_bytes += c->shards[i].rewritten ? c->shards[i].kept_bytes : 0;
	if (c->n_shards && !c->all_bytes)        // ids are not used again: without a new shard the highest has to stay
		c->shards[c->n_shards - 1].rewritten = false;
	return 0;
}

// ---- doing it

// Shards before n_written are in committed outputs as far as they stay: those rewritten go.
static int compact_remove(struct compact *c, struct error *err)
{
	struct upkeep_compacted *r = c->result;
	for (; c->n_removed < c->n_written; c->n_removed++) {
		const struct compact_shard *s = &c->shards[c->n_removed];
		const struct surplus_entry *entries = surplus_entries(c->surplus, &(size_t){0});
		if (!s->rewritten)
			continue;
		int rc = retention_remove(&c->parts.directory, s->id, err);
		if (rc < 0)
			return rc;
		for (size_t i = s->first; i < s->first + s->n; i++) {
			r->n_duplicates += entries[i].kind == SURPLUS_DUPLICATE;
			r->n_contained += entries[i].kind == SURPLUS_CONTAINED;
		}
		r->n_rewritten++;
		r->n_dropped += s->n_damaged;
		r->after_bytes -= s->n_bytes;
	}
	if (fsync(c->parts.directory.fd) < 0)
		return error_system(err, errno, NULL, "store %s: cannot synchronise the directory", c->options->directory);
	return 0;
}

static int compact_commit(struct compact *c, struct error *err)
{
	uint64_t n_bytes = 0;
	int rc = 0;
	if (c->output.fd >= 0) {
		rc = rewrite_commit(&c->output, &n_bytes, err);
		rewrite_done(&c->output);
		c->result->n_made += rc == 0;
		c->result->after_bytes += n_bytes;
	}
	return rc < 0 ? rc : compact_remove(c, err);
}

// The record as it was when it was surveyed; anything else ends the work.
static int entry_read(int fd, const struct surplus_entry *e, struct packed *ret_stored, struct record **ret_record, struct error *err)
{
	uint8_t *bytes = malloc(e->stored_bytes);
	if (!bytes)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a record of %u bytes", (unsigned)e->stored_bytes);
	ssize_t n = pread(fd, bytes, e->stored_bytes, (off_t)(e->offset + SHARD_FRAME_BYTES));
	int rc = n == (ssize_t)e->stored_bytes ? packed_decode(bytes, (size_t)n, ret_record, err) : -EIO;
	if (rc == 0 && memcmp(record_key(*ret_record), &e->key, sizeof e->key) != 0) {
		*ret_record = record_unref(*ret_record);
		rc = -EIO;
	}
	if (rc == 0)
		*ret_stored = (struct packed){bytes, e->stored_bytes, crc32c(0, bytes, e->stored_bytes)};
	else
		free(bytes);
	return rc < 0 && rc != -ENOMEM ? error_set(err, ERROR_IO, NULL, "shard %08x: what lies at %llu is not what was read there before",
						   e->shard, (unsigned long long)e->offset) : rc;
}

static int entry_write(struct compact *c, const struct compact_shard *s, const struct record *record, struct packed stored,
		       struct error *err)
{
	uint64_t n = shard_frame_size((uint32_t)stored.n);
	int rc = 0;
	if (c->output.fd >= 0 && (c->output.end > c->shard_bytes || n > c->shard_bytes - c->output.end))
		rc = compact_commit(c, err);
	if (rc == 0 && c->output.fd < 0 && c->next_id == UINT32_MAX)
		rc = error_set(err, ERROR_STORE, NULL, "store %s: no shard ids left", c->options->directory);
	if (rc == 0 && c->output.fd < 0)
		rc = rewrite_open(&c->output, &c->parts.directory, c->next_id++, s->created, err);
	if (rc == 0)
		rc = rewrite_append(&c->output, record, stored, err);
	if (c->output.written < s->written)
		c->output.written = s->written;
	return rc;
}

static int entry_copy(struct compact *c, const struct compact_shard *s, int fd, const struct surplus_entry *e, struct error *err)
{
	struct record *record = NULL;
	struct packed stored;
	int rc = entry_read(fd, e, &stored, &record, err);
	if (rc < 0)
		return rc;
	void *bytes = (void *)(uintptr_t)stored.bytes;
	rc = entry_write(c, s, record, c->options->compression ? packer_encode(&c->packer, record) : stored, err);
	free(bytes);
	record_unref(record);
	c->done_bytes += shard_frame_size(e->stored_bytes);
	on_progress(c, c->done_bytes, c->all_bytes);
	return rc;
}

static int shard_copy(struct compact *c, const struct compact_shard *s, struct error *err)
{
	size_t n;
	const struct surplus_entry *entries = surplus_entries(c->surplus, &n);
	char name[DIRECTORY_NAME_MAX];
	directory_shard_name(s->id, name);
	int rc = 0, fd = openat(c->parts.directory.fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return error_system(err, errno, NULL, "store %s: cannot open %s", c->options->directory, name);
	for (size_t i = s->first; rc == 0 && i < s->first + s->n; i++)
		if (entries[i].kind == SURPLUS_KEEP)
			rc = entry_copy(c, s, fd, &entries[i], err);
	close(fd);
	return rc;
}

static int compact_rewrite(struct compact *c, struct error *err)
{
	int rc = 0;
	bool any = false;
	for (size_t i = 0; rc == 0 && i < c->n_shards; i++) {
		any |= c->shards[i].rewritten;
		if (c->shards[i].rewritten)
			rc = shard_copy(c, &c->shards[i], err);
		if (rc == 0)
			c->n_written = i + 1;
	}
	return rc == 0 && any ? compact_commit(c, err) : rc;
}

int upkeep_compact(const struct upkeep_compact *o, struct upkeep_compacted *ret, struct error *err)
{
	struct compact *c = calloc(1, sizeof *c);
	*ret = (struct upkeep_compacted){0};
	if (!c)
		return error_set(err, ERROR_MEMORY, NULL, "no memory to compact a store");
	c->options = o;
	c->result = ret;
	c->shard_bytes = o->shard_bytes ? o->shard_bytes : SHARD_BYTES;
	c->output.fd = -1;
	c->parts.directory = (struct directory){.fd = -1, .lock = -1};
	int rc = packer_init(&c->packer, o->compression > 0 ? o->compression : 0, err);
	if (rc == 0)
		rc = compact_open(c, err);
	if (rc == 0)
		rc = compact_list(c, err);
	if (rc == 0)
		rc = compact_survey(c, err);
	if (rc == 0)
		rc = compact_plan(c, err);
	if (rc == 0)
		rc = compact_rewrite(c, err);
	if (c->output.fd >= 0)
		rewrite_done(&c->output);
	packer_done(&c->packer);
	surplus_free(c->surplus);
	free(c->shards);
	shards_done(&c->parts.shards);
	index_free(c->parts.index);
	directory_close(&c->parts.directory);
	free(c);
	return rc;
}
