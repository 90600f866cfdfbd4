// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"

#define MAX_FILE (1u << 20)

static int read_all(int fd, const char *path, const char *name, bool secret, char *text, struct error *err)
{
	struct stat st;
	size_t n = 0;
	if (fstat(fd, &st))
		return error_system(err, errno, name, "%s = %s", name, path);
	if (secret && st.st_mode & 007)
		return error_set(err, ERROR_INVALID, name, "%s = %s: anybody may read it: chmod o-rwx", name, path);
	for (ssize_t k = 1; k && n < MAX_FILE;) {
		k = read(fd, text + n, MAX_FILE - n);
		if (k < 0 && errno != EINTR)
			return error_system(err, errno, name, "%s = %s", name, path);
		n += k > 0 ? (size_t)k : 0;
	}
	text[n] = '\0';
	if (n == MAX_FILE || strlen(text) != n || !strstr(text, "-----BEGIN "))
		return error_set(err, ERROR_INVALID, name, "%s = %s: not a PEM file", name, path);
	return 0;
}

static int read_text(const char *path, const char *name, bool secret, char **ret_text, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_system(err, errno, name, "%s = %s", name, path);
	char *text = malloc(MAX_FILE + 1);
	int r = text ? read_all(fd, path, name, secret, text, err) : error_set(err, ERROR_MEMORY, name, "no memory for it");
	close(fd);
	if (r)
		free(text);
	else
		*ret_text = text;
	return r;
}

int tls_files_open(const char *certificate_path, const char *key_path, struct tls_files *ret_files, struct error *err)
{
	struct tls_files f = {0};
	int r = read_text(certificate_path, "tls-certificate", false, &f.certificate, err);
	if (!r)
		r = read_text(key_path, "tls-key", true, &f.key, err);
	if (r)
		tls_files_close(&f);
	else
		*ret_files = f;
	return r;
}

void tls_files_close(struct tls_files *f)
{
	if (f->key)
		explicit_bzero(f->key, strlen(f->key));
	free(f->key);
	free(f->certificate);
	*f = (struct tls_files){0};
}
