// SPDX-License-Identifier: Apache-2.0
// certificates DIR: writes NAME.pem and NAME.key there, each but the first and the last vouched for by "ca".
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/certificate.h"

#define HOUR 3600L
#define DAY (24 * HOUR)

static void write_file(const char *directory, const char *name, const char *suffix, const char *text)
{
	char path[4096];
	int n = snprintf(path, sizeof path, "%s/%s%s", directory, name, suffix);
	int fd = n > 0 && (size_t)n < sizeof path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd)) {
		fprintf(stderr, "certificates: %s: %s\n", path, strerror(errno));
		exit(99);
	}
}

int main(int argc, char **argv)
{
	static const struct certificate_kind kinds[] = {
		{.name = "ca", .begin_s = -10 * DAY, .end_s = DAY},
		{.name = "good", .dns = "localhost", .ip = "127.0.0.1", .begin_s = -HOUR, .end_s = DAY},
		{.name = "elsewhere", .dns = "elsewhere.example", .begin_s = -HOUR, .end_s = DAY},
		{.name = "expired", .dns = "localhost", .ip = "127.0.0.1", .begin_s = -2 * DAY, .end_s = -DAY},
		{.name = "early", .dns = "localhost", .ip = "127.0.0.1", .begin_s = HOUR, .end_s = DAY},
		{.name = "client", .dns = "localhost", .ip = "127.0.0.1", .begin_s = -HOUR, .end_s = DAY, .for_clients = 1},
		{.name = "other", .begin_s = -HOUR, .end_s = DAY}};
	const size_t n = sizeof kinds / sizeof *kinds;
	struct certificate_pair ca, made;
	if (argc != 2) {
		fputs("usage: certificates DIR\n", stderr);
		return 2;
	}
	for (size_t i = 0; i < n; i++) {
		certificate_make(&kinds[i], i == 0 || i == n - 1 ? NULL : &ca, &made);
		if (i == 0)
			ca = made;
		write_file(argv[1], kinds[i].name, ".pem", made.certificate);
		write_file(argv[1], kinds[i].name, ".key", made.key);
	}
	return 0;
}
