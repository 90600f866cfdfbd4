// SPDX-License-Identifier: Apache-2.0
// A log event as an entry of systemd's journal. A message that is too long for its socket goes the way libsystemd chooses.
#define SD_JOURNAL_SUPPRESS_LOCATION         // CODE_FILE and so on are those of who logs, not of this file
#include "daemon/log_journal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>

#define FIELDS 7
#define FIELD_BYTES 1200                     // a line of log.c and the name before it

struct fields { char text[FIELDS][FIELD_BYTES]; struct iovec iov[FIELDS]; int n; };

static void add(struct fields *f, const char *name, const char *value)
{
	int n = snprintf(f->text[f->n], FIELD_BYTES, "%s=%s", name, value);
	size_t size = n < 0 ? 0 : (size_t)n < FIELD_BYTES ? (size_t)n : FIELD_BYTES - 1;
	f->iov[f->n] = (struct iovec){f->text[f->n], size};
	f->n++;
}

bool log_journal(const struct log_event *e)
{
	struct fields f;
	char number[16];
	f.n = 0;
	add(&f, "MESSAGE", e->message);
	snprintf(number, sizeof number, "%d", e->priority);
	add(&f, "PRIORITY", number);
	add(&f, "SYSLOG_IDENTIFIER", program_invocation_short_name);
	add(&f, "CODE_FILE", e->file);
	snprintf(number, sizeof number, "%d", e->line);
	add(&f, "CODE_LINE", number);
	add(&f, "CODE_FUNC", e->function);
	if (e->field)
		add(&f, e->field, e->value);
	return sd_journal_sendv(f.iov, f.n) == 0;
}
