// SPDX-License-Identifier: Apache-2.0
#include "daemon/jansson.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static _Thread_local bool starved;

static void *allocate(size_t n)
{
	void *p = malloc(n);
	if (!p)
		starved = true;
	return p;
}

// For the whole process: what was allocated before came from malloc too, so `free` fits it.
static void install(void)
{
	json_set_alloc_funcs(allocate, free);
}

static void begin(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, install);
	starved = false;
}

// What was read, or NULL.
static json_t *end(json_t *root, json_error_t *why, json_error_t *ret_why, bool *ret_starved)
{
	if (root && starved) {
		json_decref(root);
		root = NULL;
	}
	if (!root && starved)
		snprintf(why->text, sizeof why->text, "no memory");
	if (ret_starved)
		*ret_starved = !root && starved;
	if (ret_why)
		*ret_why = *why;
	return root;
}

json_t *jansson_load(const char *text, size_t n, size_t flags, json_error_t *ret_why, bool *ret_starved)
{
	json_error_t why;
	begin();
	return end(json_loadb(text, n, flags, &why), &why, ret_why, ret_starved);
}

json_t *jansson_load_file(const char *path, size_t flags, json_error_t *ret_why, bool *ret_starved)
{
	json_error_t why;
	begin();
	FILE *f = fopen(path, "re");
	if (!f) {
		starved = errno == ENOMEM;
		snprintf(why.text, sizeof why.text, "unable to open %.90s: %m", path);
		return end(NULL, &why, ret_why, ret_starved);
	}
	json_t *root = json_loadf(f, flags, &why);
	fclose(f);
	return end(root, &why, ret_why, ret_starved);
}

char *jansson_dump(const json_t *j, size_t flags)
{
	begin();
	char *text = json_dumps(j, flags);
	if (text && starved) {
		free(text);
		text = NULL;
	}
	return text;
}
