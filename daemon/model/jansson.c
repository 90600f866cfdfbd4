// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/jansson.h"

#include <pthread.h>
#include <stdbool.h>
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

json_t *jansson_load(const char *text, size_t n, size_t flags, json_error_t *ret_why, bool *ret_starved)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	json_error_t why;
	pthread_once(&once, install);
	starved = false;
	json_t *root = json_loadb(text, n, flags, &why);
	if (root && starved) {
		json_decref(root);
		root = NULL;
	}
	if (!root && starved)
		snprintf(why.text, sizeof why.text, "no memory");
	if (ret_starved)
		*ret_starved = !root && starved;
	if (ret_why)
		*ret_why = why;
	return root;
}
