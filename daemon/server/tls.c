// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/transport.h"
#include "daemon/clock.h"
#include "daemon/log.h"

#define MAX_FILE (1u << 20)
#define DAY_S 86400
#define SOON_S (14 * DAY_S)              // renewers begin at 30 days of 90: by now they have failed for two weeks
#define DAY_MS (UINT64_C(1000) * DAY_S)
#define HOUR_MS (UINT64_C(1000) * 3600)

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

static void wipe(char *text)
{
	if (text)
		explicit_bzero(text, strlen(text));
	free(text);
}

int tls_open_files(const char *certificate_path, const char *key_path, struct tls **ret_tls, struct error *err)
{
	char *certificate = NULL, *key = NULL;
	struct error why = {0};
	int r = read_text(certificate_path, "tls-certificate", false, &certificate, err);
	if (!r)
		r = read_text(key_path, "tls-key", true, &key, err);
	if (!r && tls_open_server(certificate, key, ret_tls, &why))
		r = error_set(err, why.code, "tls-certificate", "tls-certificate = %.100s, tls-key = %.100s: %s", certificate_path,
			      key_path, why.message);
	free(certificate);
	wipe(key);
	return r;
}

// ---- what is shown now

void tls_current_init(struct tls_current *c, struct tls *tls)
{
	*c = (struct tls_current){.tls = tls};
	pthread_mutex_init(&c->lock, NULL);
}

void tls_current_done(struct tls_current *c)
{
	c->tls = tls_close(c->tls);
	pthread_mutex_destroy(&c->lock);
}

struct tls *tls_current_ref(struct tls_current *c)
{
	pthread_mutex_lock(&c->lock);
	struct tls *tls = tls_ref(c->tls);
	pthread_mutex_unlock(&c->lock);
	return tls;
}

bool tls_current_is_on(struct tls_current *c)
{
	struct tls *tls = tls_current_ref(c);
	tls_close(tls);
	return tls != NULL;
}

bool tls_current_change(struct tls_current *c, struct tls *tls)
{
	pthread_mutex_lock(&c->lock);
	struct tls *old = c->tls;
	c->tls = tls;
	pthread_mutex_unlock(&c->lock);
	bool other = !tls_is_same(old, tls);
	tls_close(old);
	c->look_ms = other ? 0 : c->look_ms;
	return other;
}

int64_t tls_current_expiry(struct tls_current *c)
{
	struct tls *tls = tls_current_ref(c);
	int64_t expiry = tls ? tls_expiry(tls) : INT64_MAX;
	tls_close(tls);
	return expiry;
}

void tls_current_date(struct tls_current *c, char ret_text[TLS_DATE_BYTES])
{
	time_t expiry = (time_t)tls_current_expiry(c);
	struct tm tm;
	if (!gmtime_r(&expiry, &tm) || !strftime(ret_text, TLS_DATE_BYTES, "%Y-%m-%dT%H:%M:%SZ", &tm))
		memcpy(ret_text, "never", sizeof "never");
}

void tls_current_watch(struct tls_current *c)
{
	char date[TLS_DATE_BYTES];
	int64_t expiry = tls_current_expiry(c), now = time(NULL);
	if (clock_ms() < c->look_ms || expiry == INT64_MAX)
		return;
	c->look_ms = clock_ms() + (expiry - now < SOON_S ? DAY_MS : HOUR_MS);
	tls_current_date(c, date);
	if (expiry <= now)
		log_about(LOG_WARNING, "KD_SETTING", "tls-certificate",
			"tls-certificate: it expired at %s: clients that look refuse it", date);
	else if (expiry - now < SOON_S)
		log_about(LOG_WARNING, "KD_SETTING", "tls-certificate",
			  "tls-certificate: it expires at %s, in %" PRId64 " h: renew it, then SIGHUP", date, (expiry - now) / 3600);
}
