// SPDX-License-Identifier: Apache-2.0
// kdctl token new: a secret, shown once, and the line of a tokens file that knows it by its digest.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/kdctl/kdctl.h"
#include "common/bearer.h"
#include "common/buffer.h"

static void print_help(void)
{
	puts("Usage: kdctl token new NAME [OPTION]...\n\n"
	     "Makes a bearer token for the setting tokens of kdserved.conf(5): prints the line for that file, and on stderr,\n"
	     "once, the secret to give to whoever it is for. With --file, adds the line there and prints the secret.\n\n"
	     "  --scopes LIST              of score,generate,train,admin; none = may only look; default score\n"
	     "  --rate N                   tokens (of questions and answers) per second\n"
	     "  --in-flight N              requests under way at once\n"
	     "  --k-max N                  ids of one row\n"
	     "  --expires DATE             YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ, UTC\n"
	     "  --file FILE                tokens file to add to; made when it is not there\n");
}

static int bad_number(const struct kdctl *k, const char *option, double max)
{
	return kdctl_usage(k, "--%s: a number from 1 to %.0f is expected", option, max);
}

static int read_option(const struct kdctl *k, int c, struct bearer *t, const char **ret_file)
{
	double v = 0;
	switch (c) {
	case 's':
		return bearer_decode_scopes(optarg, &t->scopes)
			? kdctl_usage(k, "--scopes: some of score,generate,train,admin; or none") : 0;
	case 'r':
		if (!kdctl_number(optarg, 1, (double)BEARER_MAX_RATE, &v))
			return bad_number(k, "rate", (double)BEARER_MAX_RATE);
		t->rate = (uint64_t)v;
		return 0;
	case 'i':
		if (!kdctl_number(optarg, 1, BEARER_MAX_IN_FLIGHT, &v))
			return bad_number(k, "in-flight", BEARER_MAX_IN_FLIGHT);
		t->in_flight = (uint32_t)v;
		return 0;
	case 'k':
		if (!kdctl_number(optarg, 1, BEARER_MAX_K, &v))
			return bad_number(k, "k-max", BEARER_MAX_K);
		t->k_max = (uint32_t)v;
		return 0;
	case 'e':
		return bearer_decode_date(optarg, &t->expires) ? kdctl_usage(k, "--expires: YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ") : 0;
	case 'f':
		*ret_file = optarg;
		return 0;
	default:
		return -1;
	}
}

// One write of a whole line to the end of the file, whose last line may lack its end.
static int append_line(const struct kdctl *k, const char *path, struct buffer *line)
{
	struct stat st;
	char last = '\n';
	struct buffer b = {0};
	int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600), failed = 0;
	if (fd < 0)
		return kdctl_fail(k, "%s: %s", path, strerror(errno));
	if (fstat(fd, &st) == 0 && st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) != 1)
		failed = errno;
	buffer_text(&b, last == '\n' ? "" : "\n");
	buffer_add(&b, line->data, line->n);
	if (!failed && (b.failed || write(fd, b.data, b.n) != (ssize_t)b.n || fsync(fd)))
		failed = errno ? errno : ENOMEM;
	buffer_done(&b);
	if (close(fd) && !failed)
		failed = errno;
	return failed ? kdctl_fail(k, "%s: %s", path, strerror(failed)) : 0;
}

static int print(const struct kdctl *k, const char *file, struct buffer *line, const char *secret)
{
	buffer_text(line, "\n");
	if (line->failed)
		return kdctl_fail(k, "no memory for the line");
	if (file) {
		int status = append_line(k, file, line);
		if (!status)
			puts(secret);
		return status;
	}
	fputs(line->data, stdout);
	fprintf(stderr, "The secret, shown this once: %s\n", secret);
	return 0;
}

static int make(const struct kdctl *k, struct bearer *t, const char *file)
{
	char secret[BEARER_SECRET_BYTES];
	struct buffer line = {0};
	if (bearer_new_secret(secret))
		return kdctl_fail(k, "the system has no random numbers");
	t->digest = bearer_digest(secret, strlen(secret));
	bearer_encode(&line, t);
	int status = print(k, file, &line, secret);
	explicit_bzero(secret, sizeof secret);
	buffer_done(&line);
	return status;
}

int command_token(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"scopes", required_argument, NULL, 's'}, {"rate", required_argument, NULL, 'r'},
		{"in-flight", required_argument, NULL, 'i'}, {"k-max", required_argument, NULL, 'k'},
		{"expires", required_argument, NULL, 'e'}, {"file", required_argument, NULL, 'f'}, {"help", no_argument, NULL, 'h'}, {0}};
	struct bearer t = {.scopes = BEARER_SCORE};
	const char *file = NULL;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (c == 'h') {
			print_help();
			return 0;
		}
		int status = read_option(k, c, &t, &file);
		if (status)
			return status < 0 ? kdctl_bad_option(k, argc, argv) : status;
	}
	if (argc - optind != 2 || strcmp(argv[optind], "new") != 0)
		return kdctl_usage(k, "new NAME is expected (kdctl token --help)");
	const char *name = argv[optind + 1];
	if (!bearer_name_is_valid(name))
		return kdctl_usage(k, "%s: a name has 1 to %d letters, digits, '.', '_' or '-'", name, BEARER_NAME_MAX);
	snprintf(t.name, sizeof t.name, "%s", name);
	return make(k, &t, file);
}
