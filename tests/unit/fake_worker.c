// SPDX-License-Identifier: Apache-2.0
// Stands in for kdserved-worker in test_supervisor: its behaviour is the name after "/fake/" in its run.conf.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *argument_of(int argc, char **argv, const char *name)
{
	for (int i = 1; i + 1 < argc; i++)
		if (strcmp(argv[i], name) == 0)
			return argv[i + 1];
	return NULL;
}

static int has_flag(int argc, char **argv, const char *name)
{
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], name) == 0)
			return 1;
	return 0;
}

static void behaviour_read(const char *path, char *ret, size_t size)
{
	char text[4096] = "";
	FILE *f = path ? fopen(path, "r") : NULL;
	size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
	if (f)
		fclose(f);
	text[n] = '\0';
	char *at = strstr(text, "/fake/");
	snprintf(ret, size, "%.*s", at ? (int)strcspn(at + 6, "\n ") : 0, at ? at + 6 : "");
}

static void say(const char *text)
{
	ssize_t n = write(3, text, strlen(text));
	(void)n;
}

static void say_garbage(void)
{
	char huge[10000];
	memset(huge, 'x', sizeof huge);
	huge[0] = '{';
	huge[sizeof huge - 2] = '\n';
	huge[sizeof huge - 1] = '\0';
	say("{\"step\": 1}\n");
	say("no json at all\n\n[1,2]\n\"text\"\n{\"step\":\n");
	say(huge);
	say("\xff\xfe\n{\"BAD KEY\": 1, \"nested\": {\"a\": 1}, \"step\": 7, \"state\": \"running\"}\n{\"unfinished\": ");
}

static void wait_for_term(unsigned saves_s)
{
	sigset_t set;
	int number;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	say("{\"step\": 3, \"state\": \"running\"}\n");
	sigwait(&set, &number);
	sleep(saves_s);
	say("{\"state\": \"stopped\"}\n");
}

// How often a worker of this folder has died already; counts one more.
static int deaths_count(const char *folder)
{
	char path[4096];
	int n = 0;
	snprintf(path, sizeof path, "%s/deaths", folder);
	FILE *f = fopen(path, "r");
	if (f && fscanf(f, "%d", &n) != 1)
		n = 0;
	if (f)
		fclose(f);
	f = fopen(path, "w");
	if (f) {
		fprintf(f, "%d", n + 1);
		fclose(f);
	}
	return n;
}

// Dies so many times, then goes on, which it must have been told to.
static int die_often(int argc, char **argv, int times, int by_signal)
{
	int n = deaths_count(argument_of(argc, argv, "--output"));
	if (n && !has_flag(argc, argv, "--resume"))
		return 78;
	if (n < times && by_signal)
		raise(SIGKILL);
	if (n < times) {
		fprintf(stderr, "kdserved-worker: error: disk: not now\n");
		return 1;
	}
	say("{\"step\": 10, \"steps\": 10, \"state\": \"succeeded\"}\n");
	return 0;
}

int main(int argc, char **argv)
{
	char what[64];
	behaviour_read(argument_of(argc, argv, "--config"), what, sizeof what);
	if (strcmp(what, "success") == 0) {
		say("{\"step\": 10, \"steps\": 10, \"loss\": 0.5, \"state\": \"succeeded\"}\n");
	} else if (strcmp(what, "failure") == 0) {
		fprintf(stderr, "first line\nkdserved-worker: error: corpus: cannot open /fake/failure\n");
		return 1;
	} else if (strcmp(what, "crash") == 0) {
		fprintf(stderr, "about to fall\n");
		signal(SIGSEGV, SIG_DFL);      // a sanitizer would turn it into an exit
		raise(SIGSEGV);
	} else if (strncmp(what, "killed-", 7) == 0 || strncmp(what, "exits-", 6) == 0) {
		return die_often(argc, argv, atoi(strchr(what, '-') + 1), *what == 'k');
	} else if (strcmp(what, "own-fault") == 0) {
		say("{\"fault\": \"settings\"}\n");
		fprintf(stderr, "kdserved-worker: error: corpus: cannot open it\n");
		return 1;
	} else if (strcmp(what, "usage") == 0) {
		return 2;
	} else if (strcmp(what, "garbage") == 0) {
		say_garbage();
	} else if (strcmp(what, "wait") == 0) {
		wait_for_term(0);
	} else if (strcmp(what, "save") == 0) {        // a large checkpoint
		wait_for_term(3);
	} else if (strcmp(what, "resume") == 0) {
		if (!has_flag(argc, argv, "--resume")) {
			fprintf(stderr, "not resumed\n");
			return 1;
		}
	} else {
		return 78;
	}
	return 0;
}
