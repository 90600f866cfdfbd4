// SPDX-License-Identifier: Apache-2.0
// The progress bar, and reading files whole.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/kdctl/kdctl.h"

#define BAR_WIDTH 30
#define REDRAW_MS 100            // faster than the eye needs only costs

static int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

struct progress progress_start(void)
{
	return (struct progress){.shown = isatty(STDERR_FILENO), .began_ms = now_ms()};
}

double progress_seconds(const struct progress *p)
{
	double seconds = (double)(now_ms() - p->began_ms) / 1000;
	return seconds > 0.001 ? seconds : 0.001;
}

void progress_show(struct progress *p, double done, double total, const char *note)
{
	int64_t now = now_ms();
	if (!p->shown || (done < total && now - p->drawn_ms < REDRAW_MS))
		return;
	double share = total > 0 ? done / total : 0;
	int filled = (int)(share * BAR_WIDTH);
	char bar[BAR_WIDTH + 1];
	memset(bar, '.', BAR_WIDTH);
	memset(bar, '#', (size_t)(filled < 0 ? 0 : filled > BAR_WIDTH ? BAR_WIDTH : filled));
	bar[BAR_WIDTH] = '\0';
	fprintf(stderr, "\r\033[K[%s] %3.0f %%  %s", bar, share * 100, note);
	fflush(stderr);
	p->drawn_ms = now;
}

void progress_stop(struct progress *p)
{
	if (p->shown && p->drawn_ms) {
		fputs("\r\033[K", stderr);
		fflush(stderr);
	}
	p->drawn_ms = 0;
}

char *read_text_file(const struct kdctl *k, const char *path, size_t *ret_n)
{
	bool standard = strcmp(path, "-") == 0;
	FILE *f = standard ? stdin : fopen(path, "re");
	char *text = NULL;
	size_t n = 0, capacity = 0;
	if (!f) {
		kdctl_fail(k, "%s: %s", path, strerror(errno));
		return NULL;
	}
	do {
		capacity = capacity ? 2 * capacity : 65536;
		char *larger = realloc(text, capacity + 1);
		if (!larger)
			break;
		text = larger;
		n += fread(text + n, 1, capacity - n, f);
	} while (n == capacity);
	bool failed = ferror(f) || !text || n == capacity;
	if (failed)
		kdctl_fail(k, "%s: %s", path, strerror(errno ? errno : ENOMEM));
	if (!standard)
		fclose(f);
	if (failed) {
		free(text);
		return NULL;
	}
	text[n] = '\0';
	*ret_n = n;
	return text;
}
