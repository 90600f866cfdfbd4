// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MEMORY "/dev/shm"

static char folder[48];

static void folder_remove(void)
{
	scratch_empty();
	rmdir(folder);
}

const char *scratch_folder(void)
{
	if (*folder)
		return folder;
	snprintf(folder, sizeof folder, "%s/kdserved-fuzz.XXXXXX", access(MEMORY, W_OK | X_OK) ? "/tmp" : MEMORY);
	if (!mkdtemp(folder) || atexit(folder_remove))
		abort();
	return folder;
}

const char *scratch_path(const char *leaf, char ret_path[SCRATCH_PATH])
{
	if (snprintf(ret_path, SCRATCH_PATH, "%s/%s", scratch_folder(), leaf) >= SCRATCH_PATH)
		abort();
	return ret_path;
}

const char *scratch_write(const char *leaf, const void *data, size_t n, char ret_path[SCRATCH_PATH])
{
	int fd = open(scratch_path(leaf, ret_path), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, data, n) != (ssize_t)n)
		abort();
	close(fd);
	return ret_path;
}

char *scratch_read(const char *leaf, size_t *ret_n)
{
	char path[SCRATCH_PATH];
	struct stat st;
	int fd = open(scratch_path(leaf, path), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	char *text = fstat(fd, &st) ? NULL : malloc((size_t)st.st_size + 1);
	if (!text || read(fd, text, (size_t)st.st_size) != st.st_size)
		abort();
	close(fd);
	text[st.st_size] = '\0';
	*ret_n = (size_t)st.st_size;
	return text;
}

void scratch_empty(void)
{
	DIR *d = opendir(folder);
	for (struct dirent *e; d && (e = readdir(d));)
		if (e->d_name[0] != '.')
			unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
}
