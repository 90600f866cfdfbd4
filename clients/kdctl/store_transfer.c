// SPDX-License-Identifier: Apache-2.0
// What makes a record out of rows read from a file: the codec itself, and a comparison with everything that the file claims.
#include "clients/kdctl/store_transfer.h"

#include <errno.h>
#include <string.h>


#define FLAG(name) {#name, offsetof(struct query, name)}
const struct question_flag question_flags[N_QUESTION_FLAGS] = {FLAG(dense), FLAG(own), FLAG(entropy), FLAG(max_prob), FLAG(argmax),
	FLAG(sum_squares), FLAG(tail)};
const char *const question_values[3] = {[QUERY_VALUES_F32] = "f32", [QUERY_VALUES_F16] = "f16", [QUERY_VALUES_U8] = "u8"};
const char *const question_feature_values[3] = {[QUERY_FEATURE_F32] = "f32", [QUERY_FEATURE_F16] = "f16", [QUERY_FEATURE_BF16] = "bf16"};
const char *const question_poolings[3] = {[QUERY_POOLING_NONE] = "none", [QUERY_POOLING_MEAN] = "mean", [QUERY_POOLING_LAST] = "last"};
const char *const question_kinds[5] = {[QUERY_FEATURE_HIDDEN] = "hidden", [QUERY_FEATURE_FINAL] = "final", [QUERY_FEATURE_Q] = "q",
	[QUERY_FEATURE_K] = "k", [QUERY_FEATURE_V] = "v"};

struct query_limits transfer_limits(uint32_t vocab_size)
{
	return (struct query_limits){.max_tokens = INT32_MAX, .max_top_k = vocab_size, .max_gather = UINT32_MAX, .max_draws = UINT32_MAX,
		.max_spans = UINT32_MAX, .vocab_size = vocab_size, .n_layers = UINT16_MAX + 1, .width = 1, .q_width = 1, .kv_width = 1};
}

static bool same_bytes(const struct record *a, const struct record *b)
{
	size_t n_a, n_b;
	const void *bytes_a = record_bytes(a, &n_a), *bytes_b = record_bytes(b, &n_b);
	return n_a == n_b && memcmp(bytes_a, bytes_b, n_a) == 0;
}

int claims_needed(const struct record *record, const struct record_rows *rows, bool *ret_exact, struct error *err)
{
	struct record *again = NULL;
	int r = record_encode(rows, &again, err);
	*ret_exact = r == -EOPNOTSUPP || (r == 0 && !same_bytes(record, again));     // a rounded f16 difference may not fit any more
	record_unref(again);
	return r == -EOPNOTSUPP ? 0 : r;
}

uint32_t claims_checksum(const struct record *record)
{
	size_t n;
	const uint8_t *p = record_bytes(record, &n);
	return p[12] | (uint32_t)p[13] << 8 | (uint32_t)p[14] << 16 | (uint32_t)p[15] << 24;     // kdserved-record.5
}

// Every number as it is read, without rounding: the record that these rows would be with values of f32.
static int encode_numbers(const struct record_rows *rows, struct record **ret_record, struct error *err)
{
	struct record_rows plain = *rows;
	plain.query.values = QUERY_VALUES_F32;
	return record_encode(&plain, ret_record, err);
}

// The exact record, when rows and record say the same.
static int redeem_exact(const struct claims *c, const struct record_rows *rows, struct record **ret_record, struct error *err)
{
	struct record *exact = NULL, *a = NULL, *b = NULL;
	struct record_rows *decoded = NULL;
	int r = record_from_bytes(c->exact, c->n_exact, &exact, err);
	if (!r)
		r = record_decode(exact, &decoded, err);
	if (!r)
		r = encode_numbers(decoded, &a, err);
	if (!r)
		r = encode_numbers(rows, &b, err);
	if (!r && (!same_bytes(a, b) || record_query(exact)->values != rows->query.values))
		r = error_set(err, ERROR_INVALID, "record", "it does not hold the rows beside it");
	record_rows_free(decoded);
	record_unref(a);
	record_unref(b);
	if (r)
		record_unref(exact);
	else
		*ret_record = exact;
	return r;
}

static int check(const struct claims *c, const struct record *record, struct error *err)
{
	struct record_rows *rows = NULL;
	bool ours = c->version == RECORD_VERSION;
	if (ours && c->has_key && memcmp(&c->key, record_key(record), sizeof c->key) != 0)
		return error_set(err, ERROR_INVALID, "key", "it is not the key of this teacher, these tokens and this question");
	if (ours && c->has_checksum && c->checksum != claims_checksum(record))
		return error_set(err, ERROR_INVALID, "checksum", "these are not the numbers that were exported");
	int r = record_decode(record, &rows, err);     // the encoder is lenient where the caller is us
	record_rows_free(rows);
	return r;
}

int claims_redeem(const struct claims *c, const struct record_rows *rows, struct record **ret_record, struct error *err)
{
	struct record *record = NULL;
	int r = c->exact && c->version == RECORD_VERSION ? redeem_exact(c, rows, &record, err) : record_encode(rows, &record, err);
	if (r == -EPROTO)
		r = error_set(err, ERROR_INVALID, NULL, "%s", err ? err->message : "");
	if (!r)
		r = check(c, record, err);
	if (!r)
		*ret_record = record;
	else if (record)
		record_unref(record);
	return r;
}
