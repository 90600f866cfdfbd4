// SPDX-License-Identifier: Apache-2.0
// Where answers go: a file of records or of JSON lines, or JSON lines on stdout; in the order of the input. A file can be gone on with: its
// whole answers are kept and checked, what an interruption tore off is cut away.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/convert.h"
#include "clients/kdctl/score.h"
#include "common/buffer.h"
#include "common/record.h"
#include "common/record_json.h"

#define RECORD_HEAD 12                   // magic, version, flags, bytes of the whole (kdserved-record.5)
#define RECORD_LEAST 16                  // no record is smaller
#define OUTPUT_BUFFER (1u << 20)

struct sink {
	struct kdctl *k;
	const struct score_options *options;
	const char *path;
	FILE *file;                      // NULL = nothing is kept
	bool records;
	uint64_t at;                     // resuming: where the next answer would begin
	uint64_t n_bytes;                // of the file
	uint8_t *record;                 // resuming: the one read last
	size_t record_size;
	struct query query;              // as asked, for the keys of records
	struct content_id teacher;
};

static int sink_fail(const struct sink *s, const char *what)
{
	return kdctl_fail(s->k, "%s: %s", s->path, what);
}

static int sink_fail_errno(const struct sink *s)
{
	return sink_fail(s, strerror(errno ? errno : EIO));
}

static int open_file(struct sink *s)
{
	const struct score_options *o = s->options;
	struct stat st;
	s->file = fopen(s->path, o->overwrite ? "we" : "a+e");
	if (!s->file || fstat(fileno(s->file), &st))
		return sink_fail_errno(s);
	s->n_bytes = (uint64_t)st.st_size;
	if (s->n_bytes && !o->resume && S_ISREG(st.st_mode))
		return sink_fail(s, "it is not empty: --resume goes on after what it holds, --overwrite begins it anew");
	if (o->resume && !S_ISREG(st.st_mode))
		return sink_fail(s, "it is not a file that could be gone on with");
	if (setvbuf(s->file, NULL, _IOFBF, OUTPUT_BUFFER))
		return kdctl_fail(s->k, "no memory");
	return 0;
}

int sink_open(struct kdctl *k, const struct score_options *o, struct sink **ret)
{
	struct error err = {0};
	struct sink *s = calloc(1, sizeof *s);
	if (!s)
		return kdctl_fail(k, "no memory");
	*ret = s;
	s->k = k;
	s->options = o;
	s->records = o->records_path != NULL;
	s->path = s->records ? o->records_path : o->lines_path;
	if (content_id_from_hex(kd_server(k->client)->teacher, &s->teacher))
		return kdctl_fail(k, "the server names no teacher");
	if (convert_query(&o->query, &s->query, &err))
		return kdctl_fail_with(k, err.field, err.message);
	if (s->path)
		return open_file(s);
	s->file = k->json ? stdout : NULL;
	return 0;
}

int sink_close(struct sink *s)
{
	if (!s)
		return 0;
	int status = 0;
	if (s->path && s->file && fclose(s->file))
		status = sink_fail_errno(s);
	query_done(&s->query);
	free(s->record);
	free(s);
	return status;
}

int sink_flush(struct sink *s)
{
	return s->path && s->file && fflush(s->file) ? sink_fail_errno(s) : 0;
}

// ---- going on with a file

// Between reading and writing C wants this.
static int go_to(struct sink *s, uint64_t at)
{
	return fseeko(s->file, (off_t)at, SEEK_SET) ? sink_fail_errno(s) : 0;
}

// What stands at `at` begins no whole answer: if it is the torn end of the file it is cut away, else the file is not ours to mend.
static int cut(struct sink *s, bool torn)
{
	if (!torn)
		return kdctl_fail(s->k, "%s: damaged at byte %" PRIu64, s->path, s->at);
	if (ftruncate(fileno(s->file), (off_t)s->at))
		return sink_fail_errno(s);
	s->n_bytes = s->at;
	return go_to(s, s->at);
}

static bool read_at(struct sink *s, void *to, size_t n)
{
	return fseeko(s->file, (off_t)s->at, SEEK_SET) == 0 && fread(to, 1, n, s->file) == n;
}

// After a power failure a file may end in zeros.
static bool only_zeros_left(struct sink *s)
{
	if (fseeko(s->file, (off_t)s->at, SEEK_SET))
		return false;
	for (int c; (c = getc(s->file)) != EOF;)
		if (c)
			return false;
	return true;
}

static uint32_t load_u32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

// The whole record at `at`, checked; *ret NULL when there is none and the file has been cut.
static int next_record(struct sink *s, struct record **ret)
{
	uint8_t head[RECORD_HEAD];
	uint64_t left = s->n_bytes - s->at;
	*ret = NULL;
	if (left < sizeof head)
		return cut(s, true);
	if (!read_at(s, head, sizeof head))
		return sink_fail_errno(s);
	uint32_t n = load_u32(head + 8);
	if (memcmp(head, "KDRC", 4) != 0 || n < RECORD_LEAST || n > RECORD_MAX_BYTES)
		return cut(s, only_zeros_left(s));
	if (n > left)
		return cut(s, true);
	if (n > s->record_size) {
		uint8_t *larger = realloc(s->record, n);
		if (!larger)
			return kdctl_fail(s->k, "no memory for a record of %" PRIu32 " bytes", n);
		s->record = larger;
		s->record_size = n;
	}
	if (!read_at(s, s->record, n))
		return sink_fail_errno(s);
	if (record_from_bytes(s->record, n, ret, NULL)) {
		*ret = NULL;
		return cut(s, n == left);
	}
	s->at += n;
	return 0;
}

static int item_key_of(const struct sink *s, const struct item *i, struct content_id *ret)
{
	struct error err = {0};
	int r = item_key(kd_server(s->k->client), &s->teacher, &s->query, i, ret, NULL, &err);
	return r ? kdctl_fail_with(s->k, err.field, err.message) : 0;
}

static int resume_record(struct sink *s, const struct item *i, bool *ret_there)
{
	struct record *record;
	struct content_id key;
	int status = next_record(s, &record);
	*ret_there = record;
	if (status || !record)
		return status;
	status = item_key_of(s, i, &key);
	if (!status && memcmp(record_key(record), &key, sizeof key) != 0)
		status = kdctl_fail(s->k, "%s: record %" PRIu64 " does not answer sequence %" PRIu64 " of this input, teacher and question",
				    s->path, i->number, i->number);
	record_unref(record);
	return status;
}

static void line_head(struct buffer *b, const struct item *i)
{
	struct sequence sequence = {i->tokens, i->n_tokens};
	struct content_id id = sequence_id(&sequence);
	char text[CONTENT_ID_HEX];
	content_id_to_hex(&id, text);
	buffer_printf(b, "{\"id\":\"%s\",", text);
}

// The whole line at `at`; *ret NULL when there is none and the file has been cut.
static int next_line(struct sink *s, char **ret, size_t *ret_n)
{
	size_t size = 0;
	*ret = NULL;
	if (go_to(s, s->at))
		return 1;
	ssize_t n = getline(ret, &size, s->file);
	if (n > 0 && (*ret)[n - 1] == '\n') {
		s->at += (uint64_t)n;
		*ret_n = (size_t)n;
		return 0;
	}
	free(*ret);
	*ret = NULL;
	return cut(s, true);
}

static int resume_line(struct sink *s, const struct item *i, bool *ret_there)
{
	struct buffer head = {0};
	char *line;
	size_t n;
	int status = next_line(s, &line, &n);
	*ret_there = line;
	if (status || !line)
		return status;
	line_head(&head, i);
	if (head.failed || n < head.n || memcmp(line, head.data, head.n) != 0)
		status = kdctl_fail(s->k, "%s: line %" PRIu64 " does not answer sequence %" PRIu64 " of this input", s->path, i->number + 1,
				    i->number);
	buffer_done(&head);
	free(line);
	return status;
}

int sink_resume(struct sink *s, const struct item *i, bool *ret_there)
{
	if (s->at < s->n_bytes)
		return s->records ? resume_record(s, i, ret_there) : resume_line(s, i, ret_there);
	*ret_there = false;
	return go_to(s, s->at);
}

int sink_check_rest(struct sink *s)
{
	struct record *record = NULL;
	char *line = NULL;
	size_t n;
	if (s->at == s->n_bytes)
		return 0;
	int status = s->records ? next_record(s, &record) : next_line(s, &line, &n);
	bool there = record || line;
	record_unref(record);
	free(line);
	return status ? status : there ? sink_fail(s, "it holds more answers than the input has sequences") : 0;
}

// ---- answers

static int append_line(struct sink *s, const struct item *i)
{
	struct error err = {0};
	struct record *record = NULL;
	struct record_rows *rows = NULL;
	struct buffer b = {0};
	size_t n;
	const void *bytes = kd_answer_record(i->answer, &n);
	int status = 0;
	if (record_from_bytes(bytes, n, &record, &err) || record_decode(record, &rows, &err)) {
		status = kdctl_fail_with(s->k, err.field, err.message);
		goto out;
	}
	line_head(&b, i);
	buffer_printf(&b, "\"cached\":%s,\"first\":%" PRId32 ",\"last\":%" PRId32 ",\"tokens\":",
		      kd_answer_cached(i->answer) ? "true" : "false", rows->query.first, rows->query.last);
	record_json_ids(&b, i->tokens, i->n_tokens);
	buffer_text(&b, ",");
	record_json_members(&b, rows);
	buffer_text(&b, "}\n");
	if (b.failed)
		status = kdctl_fail(s->k, "no memory for a line of JSON");
	else if (fwrite(b.data, 1, b.n, s->file) != b.n)
		status = s->path ? sink_fail_errno(s) : 1;    // stdout's failure is told at the end
out:
	buffer_done(&b);
	record_rows_free(rows);
	record_unref(record);
	return status;
}

int sink_append(struct sink *s, const struct item *i)
{
	size_t n;
	if (!s->file)
		return 0;
	if (!s->records)
		return append_line(s, i);
	const void *record = kd_answer_record(i->answer, &n);
	return fwrite(record, 1, n, s->file) == n ? 0 : sink_fail_errno(s);
}
