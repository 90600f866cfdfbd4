// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/shards.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "daemon/store/packed.h"
#include "daemon/store/shard.h"
#include "tests/fuzz/scratch.h"

#define VOCABULARY 50
#define MAX_FILE (256u << 10)
#define FILE_SHARD 0                 // kinds of files
#define FILE_INDEX 1
#define FILE_INDEX_RIGHT 2           // its checksum holds
#define STEP_RAW 0                   // what a shard is made of, step by step
#define STEP_RECORD 1
#define STEP_FRAME 2                 // around any bytes
#define STEP_SEAL 3
#define STEP_ZEROS 4
#define STEP_FLIPPED 5               // a record with a byte that changed after it was written
#define STEP_PACKED 6
#define STEP_END 7

const struct content_id shards_teacher = {{9}};

struct bytes { const uint8_t *at, *end; };
struct shard { uint8_t *bytes; size_t n; uint32_t seed; uint64_t number; };

static void require(bool holds)
{
	if (!holds)
		abort();
}

static uint32_t next(struct bytes *b)
{
	return b->at < b->end ? *b->at++ : 0;
}

static size_t take(struct bytes *b, size_t n, const uint8_t **ret)
{
	size_t left = (size_t)(b->end - b->at);
	*ret = b->at;
	n = n < left ? n : left;
	b->at += n;
	return n;
}

// ---- the teacher: the logit of an id is 10 - id - row

void shards_question(unsigned i, struct sequence *ret_sequence, struct query *ret_query)
{
	static uint32_t one[] = {1, 2, 3}, other[] = {4, 5};
	const struct query_limits limits = {.max_tokens = 64, .max_top_k = 8, .vocab_size = VOCABULARY};
	*ret_sequence = i < 3 ? (struct sequence){one, 3} : (struct sequence){other, 2};
	query_init(ret_query);
	ret_query->top_k = (const uint32_t[]){4, 2, 0, 3}[i];
	ret_query->own = i == 0 || i == 2;
	require(query_check(ret_query, ret_sequence, &limits, NULL, NULL) == 0);
}

static struct record *record_make(unsigned number)
{
	struct sequence s;
	struct query q;
	struct record_rows *rows = NULL;
	struct record *record = NULL;
	shards_question(number, &s, &q);
	require(record_rows_new(&shards_teacher, VOCABULARY, &s, &q, &rows, NULL) == 0);
	for (uint32_t i = 0; i < rows->n_rows; i++) {
		float best = 10 - (float)i;
		rows->max_logit[i] = best;
		rows->lse[i] = best + 1;
		if (q.own)
			rows->own_logit[i] = i + 1 < s.n_tokens ? best - (float)s.tokens[i + 1] : __builtin_nanf("");
		for (uint32_t j = 0; j < q.top_k; j++) {
			rows->ids[i * q.top_k + j] = j;
			rows->logits[i * q.top_k + j] = best - (float)j;
		}
	}
	require(record_encode(rows, &record, NULL) == 0);
	record_rows_free(rows);
	return record;
}

struct record *shards_record(unsigned i)
{
	static struct record *records[SHARDS_RECORDS];
	if (!records[i])
		records[i] = record_make(i);
	return records[i];
}

// ---- files

static void add(struct shard *s, const void *bytes, size_t n)
{
	n = n < MAX_FILE - s->n ? n : MAX_FILE - s->n;
	if (n && bytes)
		memcpy(s->bytes + s->n, bytes, n);
	else
		memset(s->bytes + s->n, 0, n);
	s->n += n;
}

static void add_frame(struct shard *s, const struct content_id *key, const void *record, size_t n)
{
	uint8_t head[SHARD_FRAME_BYTES];
	struct shard_frame f = {.offset = s->n, .number = s->number++, .record_bytes = (uint32_t)n, .key = *key};
	shard_frame_encode(s->seed, &f, crc32c(0, record, n), head);
	add(s, head, sizeof head);
	add(s, record, n);
	add(s, NULL, (size_t)shard_frame_size((uint32_t)n) - SHARD_FRAME_BYTES - n);
}

static void add_record(struct shard *s, unsigned number, uint32_t kind, struct bytes *in)
{
	struct record *record = shards_record(number);
	struct packed p = {0};
	struct packer packer = {0};
	size_t n, at = s->n;
	if (kind == STEP_PACKED) {
		require(packer_init(&packer, PACKED_LEVEL, NULL) == 0);
		p = packer_encode(&packer, record);
	} else {
		p.bytes = record_bytes(record, &p.n);
	}
	add_frame(s, record_key(record), p.bytes, p.n);
	n = s->n - at;
	if (kind == STEP_FLIPPED && n)
		s->bytes[at + (next(in) | next(in) << 8) % n] ^= (uint8_t)(1 + next(in) % 255);
	packer_done(&packer);
}

static void add_step(struct shard *s, uint32_t kind, struct bytes *in)
{
	const uint8_t *bytes;
	uint8_t seal[SHARD_SEAL_BYTES];
	uint32_t v = next(in);
	size_t n;
	switch (kind) {
	case STEP_RAW:
		n = take(in, v, &bytes);
		add(s, bytes, n);
		break;
	case STEP_FRAME:
		n = take(in, next(in), &bytes);
		if (n)
			add_frame(s, record_key(shards_record(v % SHARDS_RECORDS)), bytes, n);
		break;
	case STEP_SEAL:
		shard_seal_encode(s->seed, s->n, s->number + (v & 3), seal);
		add(s, seal, sizeof seal);
		break;
	case STEP_ZEROS:
		add(s, NULL, 8 * (size_t)v);
		break;
	default:
		s->number += v & 0x80 ? v >> 4 & 7 : 0;          // numbers may have gaps
		add_record(s, v % SHARDS_RECORDS, kind, in);
	}
}

static void shard_write(const char *leaf, uint32_t id, struct bytes *in)
{
	static uint8_t bytes[MAX_FILE];
	struct shard_header h = {.id = id, .created = 1700000000};
	struct shard s = {.bytes = bytes, .n = SHARD_HEADER_BYTES};
	char path[SCRATCH_PATH];
	uint32_t v = next(in), kind;
	h.salt[0] = (uint8_t)(v >> 4);
	shard_header_encode(&h, bytes);
	s.seed = h.seed;
	if (v & 1)
		bytes[20] ^= 1;                                  // one copy of the header, the other
	if (v & 2)
		bytes[SHARD_HEADER_COPY + 20] ^= 1;
	while (in->at < in->end && (kind = next(in) & 7) != STEP_END)
		add_step(&s, kind, in);
	size_t cut = v & 4 ? next(in) : 0;
	scratch_write(leaf, bytes, s.n - (cut < s.n ? cut : 0), path);
}

static void other_write(const char *leaf, uint32_t kind, struct bytes *in)
{
	char path[SCRATCH_PATH];
	const uint8_t *from;
	size_t n = next(in);
	n = take(in, n | next(in) << 8, &from);
	uint8_t *bytes = malloc(n + 1);
	require(bytes != NULL);
	memcpy(bytes, from, n);
	if (kind == FILE_INDEX_RIGHT && n >= 64) {
		uint32_t crc = crc32c(crc32c(0, bytes, 60), bytes + 64, n - 64);
		memcpy(bytes + 60, &crc, 4);
	}
	scratch_write(leaf, bytes, n, path);
	free(bytes);
}

void shards_make(const uint8_t *data, size_t size)
{
	static const char *const others[] = {"lock", "0900000000000000.teacher", "00000001.shard.tmp", "fffffffe.index"};
	struct bytes in = {data, data + size};
	char leaf[32];
	for (unsigned i = 0; i < SHARDS_RECORDS; i++)
		(void)shards_record(i);
	while (in.at < in.end) {
		uint32_t kind = next(&in), id = kind >> 2 & 3;
		kind &= 3;
		id = id == 3 ? 0x80000000 : id;
		if (kind <= FILE_INDEX_RIGHT)
			snprintf(leaf, sizeof leaf, "%08x.%s", id, kind == FILE_SHARD ? "shard" : "index");
		if (kind == FILE_SHARD)
			shard_write(leaf, id, &in);
		else
			other_write(kind <= FILE_INDEX_RIGHT ? leaf : others[id & 3], kind, &in);
	}
}
