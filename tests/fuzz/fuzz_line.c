// SPDX-License-Identifier: Apache-2.0
// A line that kdctl store import reads. What becomes a record is one: it decodes, and its own line gives it again; so does a note.
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/store_note.h"
#include "clients/kdctl/store_transfer.h"
#include "common/buffer.h"
#include "common/error.h"
#include "common/provenance.h"
#include "tests/fuzz/fuzz.h"

static void check(const struct record *record)
{
	struct record_rows *rows;
	struct record *again;
	struct buffer b = {0};
	size_t n, n_again;
	bool exact;
	const void *bytes = record_bytes(record, &n);
	if (record_decode(record, &rows, NULL) || claims_needed(record, rows, &exact, NULL))
		abort();
	line_encode(&b, record, rows, exact);
	if (b.failed || line_decode(b.data, b.n, &again, NULL))
		abort();
	const void *bytes_again = record_bytes(again, &n_again);
	if (n != n_again || memcmp(bytes, bytes_again, n) != 0)
		abort();
	buffer_done(&b);
	record_rows_free(rows);
	record_unref(again);
}

static void check_note(const char *text, size_t size)
{
	struct provenance p, again;
	struct error err = {0};
	struct buffer b = {0};
	if (note_decode_line(text, size, &p, &err)) {
		if (err.code == ERROR_NONE)
			abort();
		return;
	}
	note_encode_line(&b, &p);
	if (b.failed || note_decode_line(b.data, b.n, &again, NULL) || memcmp(&p, &again, sizeof p) != 0)
		abort();
	buffer_done(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct record *record = NULL;
	struct error err = {0};
	char *text = malloc(size + 1);
	if (!text)
		return 0;
	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	if (note_is_line(text, size)) {
		check_note(text, size);
	} else if (line_decode(text, size, &record, &err) == 0) {
		check(record);
		record_unref(record);
	} else if (err.code == ERROR_NONE) {
		abort();
	}
	free(text);
	return 0;
}
