// SPDX-License-Identifier: Apache-2.0
// The list of a run on disk: magic, id of what it was made from, number of sequences, number of tokens, then for each sequence its length
// and where it came from (where some have prompts, with another magic, also the first token to be learned), then all tokens, then the
// SHA-256 of all before. Little-endian.
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "common/error.h"
#include "daemon/worker/dataset_internal.h"

#define FILE_MAGIC "KDLIST1\n"
#define FILE_MAGIC_PROMPTS "KDLIST2\n"
#define FILE_HEADER_BYTES (8 + CONTENT_ID_BYTES + 8)

int dataset_encode(const struct dataset *d, const struct content_id *source, uint8_t **ret_bytes, size_t *ret_n, struct error *err)
{
	uint64_t n_tokens = 0;
	bool prompts = dataset_has_prompts(d);
	for (uint32_t i = 0; i < d->n_items; i++)
		n_tokens += d->items[i].n;     // each token of the dataset at most once: below 2^32
	size_t n = FILE_HEADER_BYTES + (prompts ? 12 : 8) * (size_t)d->n_items + 4 * (size_t)n_tokens + CONTENT_ID_BYTES;
	uint8_t *bytes = malloc(n);
	if (!bytes)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory to write down %u sequences", d->n_items);
	struct writer w = writer_init(bytes, n);
	writer_bytes(&w, prompts ? FILE_MAGIC_PROMPTS : FILE_MAGIC, 8);
	writer_bytes(&w, source->bytes, CONTENT_ID_BYTES);
	writer_u32(&w, d->n_items);
	writer_u32(&w, (uint32_t)n_tokens);
	for (uint32_t i = 0; i < d->n_items; i++) {
		writer_u32(&w, d->items[i].n);
		writer_u32(&w, d->items[i].place);
		if (prompts)
			writer_u32(&w, d->items[i].first);
	}
	for (uint32_t i = 0; i < d->n_items; i++)
		for (uint32_t k = 0; k < d->items[i].n; k++)
			writer_u32(&w, dataset_tokens(d)[d->items[i].start + k]);
	struct content_id sum = content_id_of(bytes, w.position);
	writer_bytes(&w, sum.bytes, CONTENT_ID_BYTES);
	*ret_bytes = bytes;
	*ret_n = n;
	return 0;
}

static int corrupt(struct error *err)
{
	return error_set(err, ERROR_CORRUPT, "corpus", "the list of sequences is damaged");
}

static int items_decode(struct dataset *d, struct reader *r, uint32_t n_items, uint32_t n_tokens, bool prompts, struct error *err)
{
	uint64_t sum = 0;
	for (uint32_t i = 0; i < n_items; i++) {
		uint32_t n = reader_u32(r), place = reader_u32(r), first = prompts ? reader_u32(r) : 0;
		sum += n;
		if (n < 2 || sum > n_tokens || first >= n)
			return corrupt(err);
		if (n > d->options.sequence_length)
			return error_set(err, ERROR_CONFLICT, "sequence-length",
				"is less than the %u tokens of a sequence that this run began with", n);
		int rc = dataset_add_item(d, n, place, err);
		if (rc)
			return rc;
		d->items[i].first = first;
	}
	return sum == n_tokens ? 0 : corrupt(err);
}

static int tokens_decode(struct dataset *d, struct reader *r, uint32_t n_tokens, struct error *err)
{
	uint32_t some[1024];
	int rc = 0;
	for (uint32_t left = n_tokens; rc == 0 && left;) {
		uint32_t n = left < 1024 ? left : 1024;
		for (uint32_t i = 0; i < n; i++)
			some[i] = reader_u32(r);
		rc = dataset_add_tokens(d, some, n, err);
		left -= n;
	}
	return rc;
}

int dataset_decode(const struct dataset_options *options, const void *bytes, size_t n, struct content_id *ret_source, struct dataset **ret,
		   struct error *err)
{
	struct reader r = reader_init(bytes, n);
	struct dataset *d = NULL;
	struct content_id source, sum, said;
	const uint8_t *magic = reader_bytes(&r, 8);
	reader_copy(&r, source.bytes, sizeof source.bytes);
	uint64_t n_items = reader_u32(&r), n_tokens = reader_u32(&r);
	bool prompts = !r.failed && memcmp(magic, FILE_MAGIC_PROMPTS, 8) == 0;
	if (r.failed || (!prompts && memcmp(magic, FILE_MAGIC, 8) != 0) ||
	    reader_left(&r) != (prompts ? 12 : 8) * n_items + 4 * n_tokens + CONTENT_ID_BYTES)
		return corrupt(err);
	memcpy(&said, (const uint8_t *)bytes + n - CONTENT_ID_BYTES, sizeof said);
	sum = content_id_of(bytes, n - CONTENT_ID_BYTES);
	if (memcmp(&sum, &said, sizeof sum) != 0)
		return corrupt(err);
	int rc = dataset_new(options, &d, err);
	rc = rc ? rc : items_decode(d, &r, (uint32_t)n_items, (uint32_t)n_tokens, prompts, err);
	rc = rc ? rc : tokens_decode(d, &r, (uint32_t)n_tokens, err);
	if (rc) {
		dataset_free(d);
		return rc;
	}
	d->listed = true;
	*ret_source = source;
	*ret = d;
	return 0;
}
