// SPDX-License-Identifier: Apache-2.0
// What a test could leave behind: its folder, descriptors. cmocka.h goes before.
#pragma once

#include <dirent.h>
#include <ftw.h>
#include <stddef.h>
#include <stdio.h>

static inline int tree_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

// The folder and all in it; 0 or -1.
static inline int tree_remove(const char *path)
{
	return nftw(path, tree_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

// Of the process, with those of looking: ".", ".." and one descriptor more.
static inline unsigned descriptors_count(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}
