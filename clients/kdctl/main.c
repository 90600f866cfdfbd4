// SPDX-License-Identifier: Apache-2.0
// kdctl: what an operator asks a kdserved server from a shell (kdctl.1).
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/kdctl.h"
#include "common/heap.h"
#include "common/streams.h"

// wrapped for the analyser alone
#undef kdctl_fail
#undef kdctl_usage
#undef kdctl_fail_with
#undef kdctl_bad_option

#define EXIT_CONFIGURATION 78    // sysexits.h: EX_CONFIG
#define TOKEN_SIZE 300
#define DEFAULT_SERVER "unix:/run/kdserved/kdserved.sock"

static const struct {
	const char *name;
	int (*run)(struct kdctl *k, int argc, char **argv);
	const char *arguments, *help;
} commands[] = {
	{"status", command_status, "", "is the server well"},
	{"top", command_top, "", "what it does now; live on a terminal"},
	{"model", command_model, "", "which teacher it holds"},
	{"score", command_score, "FILE", "score a text (- = stdin) or JSON lines and sum up"},
	{"capture", command_capture, "CORPUS... --store DIR", "score a corpus into a directory of records; goes on where it ended"},
	{"generate", command_generate, "--prompt TEXT", "let the teacher continue a text"},
	{"label", command_label, "PROMPTS --output FILE", "let the teacher answer prompts: a corpus to learn from; goes on where it ended"},
	{"select", command_select, "METHOD FILE", "which items of a corpus to learn from (no server needed)"},
	{"audit", command_audit, "--reference ADDRESS FILE", "compare answers with those of a server that computes in float64"},
	{"plan", command_plan, "MODEL", "memory, speed, bytes and hours before they are spent"},
	{"train", command_train, "RUN.conf", "start a training run and follow it"},
	{"runs", command_runs, "[[stop|watch|plot] ID]", "list training runs; show, stop, watch or draw one"},
	{"token", command_token, "new NAME", "make a bearer token for a server's tokens file (no server needed)"},
	{"store", command_store, "COMMAND DIR", "look after a directory of records (no server needed)"},
};
#define N_COMMANDS (sizeof commands / sizeof *commands)

static void print_help(void)
{
	puts("Usage: kdctl [--server unix:PATH|tcp:HOST:PORT|tls:HOST:PORT] [--teacher NAME] [--json] COMMAND [ARGUMENTS]\n\nCommands:");
	for (size_t i = 0; i < N_COMMANDS; i++) {
		char left[64];
		snprintf(left, sizeof left, "%s %s", commands[i].name, commands[i].arguments);
		printf("  %-26s %s\n", left, commands[i].help);
	}
	puts("\nOptions:\n"
	     "  --server ADDRESS           default: $KDSERVED_SERVER, else " DEFAULT_SERVER "\n"
	     "  --ca FILE                  with tls: certificates one of which must vouch for the server's; default: $KDSERVED_CA,\n"
	     "                             else the system's\n"
	     "  --server-name NAME         with tls: whom its certificate must be for; default: HOST\n"
	     "  --teacher NAME             which of the server's teachers: name or fingerprint; default: the first\n"
	     "  --token-file FILE          bearer token; default: $KDSERVED_TOKEN, else the file $KDSERVED_TOKEN_FILE\n"
	     "  --json                     output for machines\n"
	     "  --help, --version\n\n"
	     "kdctl COMMAND --help shows a command's options. Exit status: 0, 1 failure, 2 usage, 78 a bad\n"
	     "setting of the environment. See kdctl(1).");
}

static int say(const struct kdctl *k, int status, const char *format, va_list arguments)
{
	fprintf(stderr, "kdctl: %s%s", k->command ? k->command : "", k->command ? ": " : "");
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	return status;
}

int kdctl_fail(const struct kdctl *k, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int status = say(k, 1, format, arguments);
	va_end(arguments);
	return status;
}

int kdctl_usage(const struct kdctl *k, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int status = say(k, 2, format, arguments);
	va_end(arguments);
	return status;
}

int kdctl_fail_with(const struct kdctl *k, const char *field, const char *message)
{
	return *field ? kdctl_fail(k, "%s: %s", field, message) : kdctl_fail(k, "%s", message);
}

int kdctl_bad_option(const struct kdctl *k, int argc, char **argv)
{
	const char *option = optind - 1 < argc ? argv[optind - 1] : "option", *command = k->command ? k->command : "";
	return kdctl_usage(k, "%s: unknown option, or its value is missing (kdctl %s%s--help)", option, command, *command ? " " : "");
}

bool kdctl_number(const char *text, double min, double max, double *ret)
{
	char *end;
	errno = 0;
	double v = strtod(text, &end);
	if (end == text || *end || errno || !(v >= min && v <= max))
		return false;
	*ret = v;
	return true;
}

// A token is one line; what it says never reaches a message. None: an empty one.
static int read_token(const struct kdctl *k, char *token, size_t size)
{
	*token = '\0';
	if (k->token && !k->token_given) {
		if (snprintf(token, size, "%s", k->token) < (int)size)
			return 0;
		kdctl_fail(k, "KDSERVED_TOKEN: longer than any token");
		return EXIT_CONFIGURATION;
	}
	if (!k->token_file)
		return 0;
	FILE *f = fopen(k->token_file, "re");
	int status = k->token_given ? 1 : EXIT_CONFIGURATION;
	if (!f) {
		kdctl_fail(k, "%s: %s", k->token_file, strerror(errno));
		return status;
	}
	size_t n = fread(token, 1, size - 1, f);
	fclose(f);
	token[n] = '\0';
	token[strcspn(token, "\r\n")] = '\0';
	if (*token)
		return 0;
	kdctl_fail(k, "%s: holds no token", k->token_file);
	return status;
}

static int open_with(struct kdctl *k, const char *token, const char *fingerprint, struct kd_error *err)
{
	// Scoring on a busy processor may be silent for minutes; a server that died is noticed at once by its closed socket.
	bool encrypted = strncmp(k->server, "tls:", 4) == 0;
	struct kd_options options = {
		.size = sizeof options, .address = k->server, .token = token, .teacher = fingerprint, .timeout_ms = 600000,
		.ca = encrypted || k->ca_given ? k->ca : NULL, .server_name = k->server_name};
	return kd_open(&options, &k->client, err);
}

int kdctl_open(struct kdctl *k, const char *fingerprint, struct kd_error *err)
{
	char token[TOKEN_SIZE];
	*err = (struct kd_error){.code = "unauthorized", .message = "the token cannot be read any more"};
	if (read_token(k, token, sizeof token))
		return -EACCES;
	return open_with(k, *token ? token : NULL, fingerprint, err);
}

static int connect_to(struct kdctl *k, const char *fingerprint)
{
	char token[TOKEN_SIZE];
	struct kd_error err;
	int status = read_token(k, token, sizeof token);
	if (status)
		return status;
	return open_with(k, *token ? token : NULL, fingerprint, &err) ? kdctl_fail_with(k, "", err.message) : 0;
}

// Connects again when the teacher of that name is not the server's first, to which an open connection belongs.
static int choose_teacher(struct kdctl *k)
{
	json_t *model = kdctl_call(k, "GET", "/v1/model", NULL);
	const json_t *list = json_object_get(model, "teachers"), *t;
	char names[160] = "";
	const char *found = NULL;
	size_t i;
	if (!model)
		return 1;
	json_array_foreach(list, i, t) {
		const char *name = json_string_value(json_object_get(t, "name"));
		if (name && strcmp(name, k->teacher) == 0)
			found = json_string_value(json_object_get(t, "id"));
		snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", name ? name : "?");
	}
	int status = found ? 0 : kdctl_fail(k, "--teacher %s: the server has %s", k->teacher, names);
	if (found && strcmp(found, kd_server(k->client)->teacher) != 0) {
		kd_close(k->client);
		k->client = NULL;
		status = connect_to(k, found);
	}
	json_decref(model);
	return status;
}

int kdctl_connect(struct kdctl *k)
{
	if (strncmp(k->server, "unix:", 5) != 0 && strncmp(k->server, "tcp:", 4) != 0 && strncmp(k->server, "tls:", 4) != 0) {
		kdctl_usage(k, "%s: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT is expected", k->server);
		return k->server_given ? 2 : EXIT_CONFIGURATION;
	}
	bool fingerprint = k->teacher && strlen(k->teacher) == 64 && strspn(k->teacher, "0123456789abcdefABCDEF") == 64;
	int status = connect_to(k, fingerprint ? k->teacher : NULL);
	return status || !k->teacher || fingerprint ? status : choose_teacher(k);
}

static int run_command(struct kdctl *k, int argc, char **argv)
{
	for (size_t i = 0; i < N_COMMANDS; i++) {
		if (strcmp(commands[i].name, argv[0]) != 0)
			continue;
		k->command = argv[0];
		optind = 0;    // starts getopt afresh on the command's own arguments
		return commands[i].run(k, argc, argv);
	}
	return kdctl_usage(k, "%s: no such command (kdctl --help)", argv[0]);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"server", required_argument, NULL, 's'}, {"token-file", required_argument, NULL, 't'},
		{"teacher", required_argument, NULL, 'T'}, {"ca", required_argument, NULL, 'c'},
		{"server-name", required_argument, NULL, 'n'}, {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'}, {0}};
	struct kdctl k = {.server = getenv("KDSERVED_SERVER"), .token_file = getenv("KDSERVED_TOKEN_FILE"),
		.token = getenv("KDSERVED_TOKEN"), .ca = getenv("KDSERVED_CA")};
	if (!k.server || !*k.server)
		k.server = DEFAULT_SERVER;
	if (k.token && !*k.token)
		k.token = NULL;
	if (k.ca && !*k.ca)
		k.ca = NULL;
	opterr = 0;
	if (streams_init())
		return kdctl_fail(&k, "/dev/null: %s", strerror(errno));
	heap_init();
	for (int c; (c = getopt_long(argc, argv, "+:", options, NULL)) != -1;) {
		switch (c) {
		case 's': k.server = optarg; k.server_given = true; break;
		case 'T': k.teacher = optarg; break;
		case 'c': k.ca = optarg; k.ca_given = true; break;
		case 'n': k.server_name = optarg; break;
		case 't': k.token_file = optarg; k.token_given = true; break;
		case 'j': k.json = true; break;
		case 'h': print_help(); return 0;
		case 'v': printf("kdctl %s\n", kd_version()); return 0;
		default: return kdctl_bad_option(&k, argc, argv);
		}
	}
	if (optind == argc)
		return kdctl_usage(&k, "a command is expected (kdctl --help)");
	int status = run_command(&k, argc - optind, argv + optind);
	kd_close(k.client);
	// A full disk or a closed pipe shows only when the buffer is written.
	if (fflush(stdout) || ferror(stdout))
		status = status ? status : kdctl_fail(&k, "cannot write the output: %s", strerror(errno));
	return status;
}
