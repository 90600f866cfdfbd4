// SPDX-License-Identifier: Apache-2.0
// What systemd, an operator's shell or anybody who starts the daemon hands over: parts between NULs, each a variable ("NAME=VALUE": those
// in `names`, and KDSERVED_*) or an argument ("--..."). The settings are read, systemd is told things, and sockets are taken over: one
// listens on a unix socket, one on loopback, one is a file. What was read is within its limits, what is refused is said, and a socket is
// taken for the door it is named for only if it is one.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/arguments.h"
#include "daemon/listeners.h"
#include "daemon/log.h"
#include "daemon/notify.h"
#include "daemon/options.h"
#include "tests/fuzz/fuzz.h"

#define MAX_PARTS 64
#define N_PASSED 3
#define PREFIX "KDSERVED_"             // of settings, and of what may be taken for one
#define FIRST_PASSED 3                 // systemd's, fixed

static const char *const names[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
	"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM"};
#define N_NAMES (sizeof names / sizeof *names)

static void require(bool holds)
{
	if (!holds)
		abort();
}

// ---- the surroundings

static int passed[N_PASSED];           // beyond the descriptors that systemd uses; -1 = those are somebody else's here

static int listen_at(int family, const void *address, socklen_t n)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	require(fd >= 0 && bind(fd, address, n) == 0 && listen(fd, 1) == 0);
	return fd;
}

static void passed_make(void)
{
	const struct sockaddr_un un = {.sun_family = AF_UNIX};         // the kernel finds a name
	const struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	for (int i = 0; i < N_PASSED; i++) {
		passed[i] = -1;
		if (fcntl(FIRST_PASSED + i, F_GETFD) >= 0)
			return;
	}
	const int made[N_PASSED] = {listen_at(AF_UNIX, &un, sizeof(sa_family_t)), listen_at(AF_INET, &in, sizeof in),
		open("/dev/null", O_RDWR | O_CLOEXEC)};
	for (int i = 0; i < N_PASSED; i++) {
		passed[i] = fcntl(made[i], F_DUPFD_CLOEXEC, 100);
		require(passed[i] >= 0);
	}
	for (int i = 0; i < N_PASSED; i++)
		close(made[i]);
}

static bool variable_is_known(const char *name, size_t n)
{
	for (size_t i = 0; i < N_NAMES; i++)
		if (n == strlen(names[i]) && strncmp(name, names[i], n) == 0)
			return true;
	return n > strlen(PREFIX) && strncmp(name, PREFIX, strlen(PREFIX)) == 0;
}

static void environment_clear(void)
{
	for (char **v = environ; *v;) {
		char name[4096];
		size_t n = strcspn(*v, "=");
		if (n >= sizeof name || !variable_is_known(*v, n)) {
			v++;
			continue;
		}
		memcpy(name, *v, n);
		name[n] = '\0';
		unsetenv(name);                // what stood behind it moves up
	}
}

// Ours stand for "self" where a process is named.
static void variable_set(char *part)
{
	char self[16], *equals = strchr(part, '=');
	if (!equals)
		return;
	*equals = '\0';
	snprintf(self, sizeof self, "%d", getpid());
	if (equals - part < 4096 && variable_is_known(part, (size_t)(equals - part)))
		require(setenv(part, strcmp(equals + 1, "self") == 0 ? self : equals + 1, 1) == 0);
}

// ---- what is done there

static void check_values(const struct options *o)
{
	for (size_t i = 0; i < options_count; i++) {
		const struct config_option *row = &options_table[i];
		const char *field = (const char *)o + row->offset;
		double v = row->min;
		if (row->type == CONFIG_INTEGER)
			v = (double)*(const int64_t *)(const void *)field;
		if (row->type == CONFIG_SIZE || row->type == CONFIG_DURATION)
			v = (double)*(const uint64_t *)(const void *)field;
		require(v >= row->min && v <= row->max);
	}
}

static void try_settings(char **argv)
{
	enum arguments_mode mode = MODE_RUN;
	struct config_errors all = {0};
	struct options o;
	struct error err = {0};
	if (options_init_unit(&o, &err) == 0) {
		int status = arguments_read(&o, argv, &mode, &all);
		require(!status == !config_errors_any(&all) && (!status || status == EXIT_USAGE || status == EXIT_BAD_CONFIG));
		arguments_warn(&all);
		check_values(&o);
		if (options_check(&o, &err))
			require(err.code && err.message[0]);
	} else {
		require(err.code && err.message[0]);
	}
	config_errors_done(&all);
	options_done(&o);
}

static void try_notify(const char *text)
{
	struct notify n;
	notify_init(&n, 1000);
	require(notify_timeout(&n, true) >= -1 && notify_timeout(&n, false) >= -1);
	notify_loading(&n);
	notify_engine(&n, 1);
	notify_status("%s", text);
	notify_reloading();
	notify_ready();
	notify_stopping(UINT64_MAX / 4000);
	log_open(-1);
	log_error("%s", text);
}

// Neither door is named in the settings, so nothing is opened but what is passed.
static void try_listeners(void)
{
	struct options o;
	struct listeners l;
	struct error err = {0};
	if (passed[0] < 0)
		return;
	for (int i = 0; i < N_PASSED; i++)
		require(dup2(passed[i], FIRST_PASSED + i) == FIRST_PASSED + i);
	require(options_init(&o, NULL) == 0 && config_set(options_table, options_count, &o, "http", "", "--http", NULL) == 0 &&
		config_set(options_table, options_count, &o, "socket", "", "--socket", NULL) == 0);
	int r = listeners_open(&o, &l, &err);
	require(!r == !err.code && !getenv("LISTEN_FDS"));
	require(l.n_sockets <= SOCKET_MAX_LISTENERS && l.http_fd != FIRST_PASSED + 2);
	for (size_t i = 0; i < l.n_sockets; i++)
		require(l.socket_fds[i] >= FIRST_PASSED && l.socket_fds[i] < FIRST_PASSED + 2 && l.socket_fds[i] != l.http_fd);
	listeners_close(&l);
	options_done(&o);
	for (int i = 0; i < N_PASSED; i++)
		close(FIRST_PASSED + i);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool made;
	char *text = malloc(size + 1), *argv[MAX_PARTS + 2] = {(char[]){"kdserved"}}, *end = text + size;
	size_t n = 1;
	require(text != NULL);
	if (!made)
		passed_make();
	made = true;
	if (size)
		memcpy(text, data, size);
	*end = '\0';
	environment_clear();
	for (char *part = text; part < end && n <= MAX_PARTS; part += strlen(part) + 1) {
		if (strncmp(part, "--config", 8) == 0)
			continue;              // a file of any kind: fuzz_config's
		if (strncmp(part, "--", 2) == 0)
			argv[n++] = part;
		else
			variable_set(part);
	}
	try_settings(argv);
	try_notify(size ? text : "");
	try_listeners();
	environment_clear();
	free(text);
	return 0;
}
