// SPDX-License-Identifier: Apache-2.0
// kdctl store export --format jsonl.
#include <stdlib.h>

#include "clients/kdctl/store_note.h"
#include "clients/kdctl/store_transfer.h"
#include "common/buffer.h"
#include "common/error.h"
#include "common/output.h"
#include "common/provenance.h"

struct lines { struct export *e; struct buffer line; };

static int take_line(void *arg, const struct record *record, const struct record_rows *rows, struct error *err)
{
	struct lines *l = arg;
	bool exact;
	l->line.n = 0;
	int r = claims_needed(record, rows, &exact, err);
	if (r)
		return r;
	line_encode(&l->line, record, rows, exact);
	buffer_text(&l->line, "\n");
	if (l->line.failed)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a line of JSON");
	if (l->line.n > LINE_MAX_BYTES)
		return error_set(err, ERROR_TOO_LARGE, NULL, "a line of %zu bytes; safetensors holds such a record", l->line.n);
	return output_write(l->e->output, l->line.data, l->line.n);
}

// Who answered, before the answers.
static int write_notes(struct lines *l)
{
	struct provenance *notes = NULL;
	size_t n = export_notes(l->e, &notes);
	for (size_t i = 0; i < n; i++)
		note_encode_line(&l->line, &notes[i]);
	free(notes);
	int r = l->line.failed ? error_set(&l->e->err, ERROR_MEMORY, NULL, "no memory for a line of JSON") : 0;
	if (!r && n)
		r = output_write(l->e->output, l->line.data, l->line.n);
	return r ? kdctl_fail(l->e->k, "%s", l->e->err.message) : 0;
}

int export_lines(struct export *e)
{
	struct lines l = {.e = e};
	int status = write_notes(&l);
	if (!status)
		status = export_walk(e, "exported", take_line, &l);
	buffer_done(&l.line);
	return status;
}
