// SPDX-License-Identifier: Apache-2.0
// Any bytes as a shard or as an index file. First byte: 0 the rest is a whole shard; 1 it is what follows a good header; 2 the same with
// checksums put right wherever something looks like a frame or a seal; 3 an index file; 4 the same with its checksum put right;
// 5 a compressed record without its magic.
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/record.h"
#include "daemon/store/packed.h"
#include "daemon/store/scan.h"
#include "daemon/store/sidecar.h"
#include "tests/fuzz/fuzz.h"

#define SHARD_ID 42
#define SEED_OF_INDEX 7
#define SHARD_BYTES_OF_INDEX 100000

static void expect(bool holds)
{
	if (!holds)
		abort();
}

// What is found covers the shard from the header on, piece by piece, and lies inside it.
static void scan_all(const uint8_t *bytes, size_t n)
{
	struct scan s;
	struct scan_item item;
	if (scan_init_bytes(&s, bytes, n, SHARD_ID, NULL) < 0)
		return;
	uint64_t at = SHARD_HEADER_BYTES, number = 0, n_steps = 0;
	for (;;) {
		expect(scan_next(&s, &item, NULL) == 0);
		expect(item.offset == at && n_steps++ <= 2 * n + 4);
		if (item.kind == SCAN_END)
			break;
		expect(item.n_bytes <= n - at);
		if (item.kind == SCAN_RECORD) {
			expect(item.frame.offset == at && item.frame.number >= number &&
				item.n_bytes == shard_frame_size(item.frame.record_bytes));
			expect(item.record == bytes + at + SHARD_FRAME_BYTES && item.frame.record_bytes > 0);
			expect(shard_frame_check(s.header.seed, &item.frame, bytes + at) == 0);
			number = item.frame.number + 1;
		}
		expect(item.kind != SCAN_DAMAGE || item.n_lost > 0);
		at += item.kind == SCAN_TORN ? 0 : item.n_bytes;
	}
	expect(at <= n || n < SHARD_HEADER_BYTES);
	scan_done(&s);
}

// Where a magic stands, the checksums over what follows are made to hold, lengths as they are (small ones, to get frames in a row).
static void put_right(uint8_t *bytes, size_t n, uint32_t seed)
{
	static uint8_t record[512];
	for (size_t at = SHARD_HEADER_BYTES; at + SHARD_SEAL_BYTES <= n; at += 8) {
		if (memcmp(bytes + at, "KDFR", 4) == 0 && at + SHARD_FRAME_BYTES <= n) {
			struct shard_frame f = {
				.offset = at, .record_bytes = (bytes[at + 4] | (uint32_t)bytes[at + 5] << 8) % sizeof record};
			memcpy(&f.number, bytes + at + 8, 8);
			memcpy(&f.key, bytes + at + 16, sizeof f.key);
			if (shard_frame_size(f.record_bytes) > n - at)
				continue;
			memset(record, 0, sizeof record);
			memcpy(record, bytes + at + SHARD_FRAME_BYTES, f.record_bytes);
			size_t size = (size_t)shard_frame_size(f.record_bytes);
			memset(bytes + at + SHARD_FRAME_BYTES + f.record_bytes, 0, size - SHARD_FRAME_BYTES - f.record_bytes);
			shard_frame_encode(seed, &f, crc32c(0, record, f.record_bytes), bytes + at);
		} else if (memcmp(bytes + at, "KDSE", 4) == 0) {
			uint64_t number;
			memcpy(&number, bytes + at + 8, 8);
			shard_seal_encode(seed, at, number, bytes + at);
		}
	}
}

static void try_shard(const uint8_t *data, size_t size, bool right)
{
	struct shard_header h = {.id = SHARD_ID};
	size_t n = SHARD_HEADER_BYTES + size;
	uint8_t *bytes = malloc(n);
	if (!bytes)
		return;
	shard_header_encode(&h, bytes);
	if (size)
		memcpy(bytes + SHARD_HEADER_BYTES, data, size);
	if (right)
		put_right(bytes, n, h.seed);
	scan_all(bytes, n);
	free(bytes);
}

static void try_index(const uint8_t *data, size_t size, bool right)
{
	struct sidecar s;
	uint8_t *bytes = malloc(size + 1);
	if (!bytes)
		return;
	memcpy(bytes, data, size);
	if (right && size >= 64) {
		uint32_t crc = crc32c(crc32c(0, bytes, 60), bytes + 64, size - 64);
		memcpy(bytes + 60, &crc, 4);
	}
	if (sidecar_decode(bytes, size, SHARD_ID, SEED_OF_INDEX, SHARD_BYTES_OF_INDEX, &s, NULL) == 0) {
		for (size_t i = 0; i < s.n; i++)
			expect(s.entries[i].offset + shard_frame_size(s.entries[i].record_bytes) <= SHARD_BYTES_OF_INDEX);
		uint8_t *again;
		size_t n;
		expect(s.n == (size - 64) / 56);
		if (sidecar_encode(&s, SHARD_ID, SEED_OF_INDEX, SHARD_BYTES_OF_INDEX, &again, &n) == 0) {
			expect(n == size);
			free(again);
		}
		sidecar_done(&s);
	}
	free(bytes);
}

static void try_packed(const uint8_t *data, size_t size)
{
	struct record *record;
	uint8_t *bytes = malloc(4 + size);
	if (!bytes)
		return;
	memcpy(bytes, "KDRZ", 4);
	if (size)
		memcpy(bytes + 4, data, size);
	if (packed_decode(bytes, 4 + size, &record, NULL) == 0) {
		size_t n;
		(void)record_bytes(record, &n);
		expect(n > 4 + size);
		record_unref(record);
	}
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	switch (data[0] % 6) {
	case 0: scan_all(data + 1, size - 1); break;
	case 1: try_shard(data + 1, size - 1, false); break;
	case 2: try_shard(data + 1, size - 1, true); break;
	case 3: try_index(data + 1, size - 1, false); break;
	case 4: try_index(data + 1, size - 1, true); break;
	default: try_packed(data + 1, size - 1); break;
	}
	return 0;
}
