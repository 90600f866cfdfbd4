// SPDX-License-Identifier: Apache-2.0
// kdserved-worker: one training run in its own process, started by the daemon or by hand.
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/error.h"
#include "common/streams.h"
#include "config.h"
#include "daemon/idle.h"
#include "daemon/log.h"
#include "daemon/loss/method.h"
#include "daemon/worker/team.h"
#include "daemon/worker/trainer.h"

#define EXIT_USAGE 2
#define EXIT_CONFIG 78                 // sysexits.h: EX_CONFIG
#define TEAM_WORK_MS 1800000           // beyond the patience for the teacher: one process's steps, evaluation or checkpoint

static atomic_bool stop;

static void on_stop(int number)
{
	atomic_store(&stop, true);
	if (number != SIGUSR1)         // a warning, which may come more than once
		signal(number, SIG_DFL);       // a second one ends the process at once
}

struct arguments {
	const char *config, *output, *default_server;
	bool resume, check, example, list;
	int progress_fd;
};

enum argument { ARGUMENT_CONFIG = 256, ARGUMENT_OUTPUT, ARGUMENT_DEFAULT_SERVER, ARGUMENT_RESUME, ARGUMENT_PROGRESS_FD, ARGUMENT_CHECK,
		ARGUMENT_EXAMPLE, ARGUMENT_LIST, ARGUMENT_HELP, ARGUMENT_VERSION, ARGUMENT_SETTING };

static const struct option own_options[] = {
	{"config", required_argument, NULL, ARGUMENT_CONFIG},
	{"output", required_argument, NULL, ARGUMENT_OUTPUT},
	{"default-server", required_argument, NULL, ARGUMENT_DEFAULT_SERVER},
	{"resume", no_argument, NULL, ARGUMENT_RESUME},
	{"progress-fd", required_argument, NULL, ARGUMENT_PROGRESS_FD},
	{"check-config", no_argument, NULL, ARGUMENT_CHECK},
	{"print-example", no_argument, NULL, ARGUMENT_EXAMPLE},
	{"list-losses", no_argument, NULL, ARGUMENT_LIST},
	{"help", no_argument, NULL, ARGUMENT_HELP},
	{"version", no_argument, NULL, ARGUMENT_VERSION},
};
#define N_OWN (sizeof own_options / sizeof *own_options)

static void print_help(void)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	puts("Usage: kdserved-worker --config RUN.conf --output DIR [--resume] [SETTING...]\n"
	     "Trains a student from what a kdserved teacher says of a text corpus, or from the shards in which it was kept.\n\n"
	     "  --config RUN.conf             settings, \"key = value\" (kdserved-worker.8)\n"
	     "  --output DIR                  the run's folder: checkpoints/, student/, metrics.jsonl\n"
	     "  --resume                      go on from the newest checkpoint in DIR\n"
	     "  --default-server ADDRESS      where the teacher answers when the settings do not say\n"
	     "  --progress-fd N               JSON lines on descriptor N (used by the daemon); stop when its reader is gone\n"
	     "  --check-config                read the settings, report, leave\n"
	     "  --print-example               a commented RUN.conf\n"
	     "  --list-losses                 the losses that \"loss\" can name, with their parameters\n"
	     "  --help, --version\n\n"
	     "Settings, also keys of RUN.conf:");
	config_print_help(stdout, table, n);
	puts("\nExit status: 0 done or stopped, 1 failure, 2 usage, 78 bad settings. SIGTERM: checkpoint and leave. "
	     "See kdserved-worker(8).");
}

static int complain(int status, const struct error *err)
{
	if (*err->field && !strstr(err->message, err->field))
		log_error("%s: %s", err->field, err->message);
	else
		log_error("%s", err->message);
	return status;
}

// Own options, then one row per setting, for getopt; the caller frees.
static struct option *options_make(void)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	struct option *all = calloc(N_OWN + n + 1, sizeof *all);
	if (!all)
		return NULL;
	memcpy(all, own_options, sizeof own_options);
	for (size_t i = 0; i < n; i++)
		all[N_OWN + i] = (struct option){table[i].name, required_argument, NULL, ARGUMENT_SETTING};
	return all;
}

static int own_take(struct arguments *a, int which)
{
	char *end;
	switch (which) {
	case ARGUMENT_CONFIG: a->config = optarg; return 0;
	case ARGUMENT_OUTPUT: a->output = optarg; return 0;
	case ARGUMENT_DEFAULT_SERVER: a->default_server = optarg; return 0;
	case ARGUMENT_RESUME: a->resume = true; return 0;
	case ARGUMENT_CHECK: a->check = true; return 0;
	case ARGUMENT_EXAMPLE: a->example = true; return 0;
	case ARGUMENT_LIST: a->list = true; return 0;
	case ARGUMENT_PROGRESS_FD:
		a->progress_fd = (int)strtol(optarg, &end, 10);
		if (*end || end == optarg || a->progress_fd < 3 || a->progress_fd > 1023) {
			fprintf(stderr, "kdserved-worker: --progress-fd %s: expected a descriptor from 3 to 1023\n", optarg);
			return EXIT_USAGE;
		}
		return 0;
	default: return EXIT_USAGE;
	}
}

// Two passes: the first finds --config, so that settings on the command line win over the file wherever they stand. Returns -1 to go on.
static int arguments_read(int argc, char **argv, struct arguments *a, struct run_settings *s, bool settings)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	struct option *all = options_make();
	struct error err = {0};
	int which, index, status = -1;
	optind = 1;
	opterr = !settings;            // complain once
	while (all && status < 0 && (which = getopt_long(argc, argv, "", all, &index)) != -1) {
		char where[80];
		if (which == ARGUMENT_SETTING && settings) {
			snprintf(where, sizeof where, "--%s", all[index].name);
			if (config_set(table, n, s, all[index].name, optarg, where, &err))
				status = complain(EXIT_USAGE, &err);
		} else if (which == ARGUMENT_HELP || which == ARGUMENT_VERSION) {
			which == ARGUMENT_HELP ? print_help() : (void)puts(PACKAGE_STRING);
			status = EXIT_SUCCESS;
		} else if (which != ARGUMENT_SETTING && own_take(a, which)) {
			status = EXIT_USAGE;
		}
	}
	if (status < 0 && optind < argc) {
		fprintf(stderr, "kdserved-worker: %s: unexpected argument\n", argv[optind]);
		status = EXIT_USAGE;
	}
	free(all);
	return all ? status : EXIT_FAILURE;
}

static int settings_read(int argc, char **argv, struct arguments *a, struct run_settings *s)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	struct error err = {0};
	if (settings_init(s, &err) || (a->config && config_read_file(table, n, s, a->config, &err)))
		return complain(EXIT_CONFIG, &err);
	int status = arguments_read(argc, argv, a, s, true);
	if (status >= 0)
		return status;
	if (!s->server && !settings_shards(s) && !settings_labels(s) && a->default_server &&
	    config_set(table, n, s, "server", a->default_server, "--default-server", &err))
		return complain(EXIT_USAGE, &err);
	if (settings_check(s, &err))
		return complain(EXIT_CONFIG, &err);
	return -1;
}

static void signals_set(void)
{
	struct sigaction a = {.sa_handler = on_stop};  // no SA_RESTART: a wait ends when it is asked to
	sigaction(SIGTERM, &a, NULL);
	sigaction(SIGINT, &a, NULL);
	sigaction(SIGUSR1, &a, NULL);  // what mpirun passes on, and Slurm can send ahead of a time limit
	signal(SIGPIPE, SIG_IGN);
}

// Of several processes that train together, the first alone tells what all of them know; the others say their number.
static void name_set(const struct team *team)
{
	static char name[64];
	if (team_rank(team) == 0)
		return;
	log_open(LOG_WARNING);
	snprintf(name, sizeof name, "%.40s[%u]", program_invocation_short_name, team_rank(team));
	program_invocation_short_name = name;
}

// The daemon starts a worker that failed again, unless the settings, or what they name, are at fault.
static void fault_say(int fd, enum error_code code)
{
	static const char line[] = "{\"fault\":\"settings\"}\n";
	bool own = code == ERROR_INVALID || code == ERROR_UNSUPPORTED || code == ERROR_NOT_FOUND || code == ERROR_TOO_LARGE ||
		code == ERROR_CORRUPT || code == ERROR_UNAUTHORIZED || code == ERROR_FORBIDDEN;
	if (own && fd >= 0 && send(fd, line, sizeof line - 1, MSG_NOSIGNAL) < 0)
		log_debug("nobody hears why");
}

static int run(const struct arguments *a, const struct run_settings *s)
{
	struct error err = {0};
	struct trainer *t = NULL;
	struct team *team = NULL;
	struct team_options with = {.silence_ms = (uint64_t)s->patience + TEAM_WORK_MS};
	enum trainer_end end;
	int r = team_open(&with, &team, &err);
	if (r == 0) {
		struct trainer_options o = {s, a->output, a->resume, a->progress_fd, &stop, team};
		name_set(team);
		signals_set();
		r = trainer_open(&o, &t, &err);
	}
	r = r ? r : trainer_run(t, &end, &err);
	trainer_close(t);
	if (r) {
		complain(EXIT_FAILURE, &err);
		fault_say(a->progress_fd, err.code);
	}
	team_close(team);              // a broken one does not return
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	struct arguments a = {.progress_fd = -1};
	struct run_settings s = {0};
	size_t n;
	if (streams_init()) {
		perror("kdserved-worker: /dev/null");
		return EXIT_FAILURE;
	}
	idle_init(argv);
	log_open(LOG_INFO);
	int status = arguments_read(argc, argv, &a, &s, false);
	if (status >= 0)
		return status;
	if (a.example) {
		const struct config_option *table = settings_table(&n);
		config_print_example(stdout, table, n);
		return EXIT_SUCCESS;
	}
	if (a.list) {
		method_print(stdout);
		return EXIT_SUCCESS;
	}
	status = settings_read(argc, argv, &a, &s);
	if (status < 0 && a.check)
		status = EXIT_SUCCESS;
	if (status < 0 && !a.output) {
		fprintf(stderr, "kdserved-worker: --output DIR is missing\n");
		status = EXIT_USAGE;
	}
	if (status < 0)
		status = run(&a, &s);
	settings_done(&s);
	return status;
}
