// SPDX-License-Identifier: Apache-2.0
// A safetensors file that kdctl store import reads. What becomes a record decodes; what does not has a reason.
#include <stdlib.h>

#include "clients/kdctl/store_note.h"
#include "clients/kdctl/store_tensors.h"
#include "common/error.h"
#include "common/provenance.h"
#include "tests/fuzz/fuzz.h"

#define MOST_RECORDS 64

static void check_notes(const struct tensors *t)
{
	struct provenance *notes = NULL;
	struct error err = {0};
	char *text = NULL;
	size_t n;
	if (tensors_metadata(t, &text, &err) || (text && note_decode_metadata(text, t->n_metadata, &notes, &n, &err)))
		if (err.code == ERROR_NONE)
			abort();
	free(text);
	free(notes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tensors t;
	struct error err = {0};
	if (tensors_open_bytes(&t, data, size, &err)) {
		if (err.code == ERROR_NONE)
			abort();
		return 0;
	}
	check_notes(&t);
	for (uint64_t i = 0; i < t.n_records && i < MOST_RECORDS; i++) {
		struct record *record;
		struct record_rows *rows;
		err = (struct error){0};
		if (tensors_record(&t, i, &record, &err) == 0) {
			if (record_decode(record, &rows, NULL))
				abort();
			record_rows_free(rows);
			record_unref(record);
		} else if (err.code == ERROR_NONE) {
			abort();
		}
	}
	return 0;
}
