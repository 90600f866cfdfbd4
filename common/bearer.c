// SPDX-License-Identifier: Apache-2.0
#include "common/bearer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/buffer.h"
#include "common/error.h"

#define MAX_WORDS 8
#define WORD_BYTES 256

static const char name_letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

static const struct { const char *name; unsigned bit; } scopes[] = {
	{"score", BEARER_SCORE}, {"generate", BEARER_GENERATE}, {"train", BEARER_TRAIN}, {"admin", BEARER_ADMIN},
};
#define N_SCOPES (sizeof scopes / sizeof *scopes)

bool bearer_name_is_valid(const char *name)
{
	size_t n = strlen(name);
	return n >= 1 && n <= BEARER_NAME_MAX && strspn(name, name_letters) == n && strncmp(name, "kds_", 4) != 0;
}

static unsigned scope_find(const char *name, size_t n)
{
	for (size_t i = 0; i < N_SCOPES; i++)
		if (strlen(scopes[i].name) == n && memcmp(scopes[i].name, name, n) == 0)
			return scopes[i].bit;
	return 0;
}

int bearer_decode_scopes(const char *text, unsigned *ret_scopes)
{
	unsigned found = 0;
	if (strcmp(text, "none") == 0) {
		*ret_scopes = 0;
		return 0;
	}
	for (const char *at = text;; at++) {
		size_t n = strcspn(at, ",");
		unsigned bit = scope_find(at, n);
		if (!bit || (found & bit))
			return -EINVAL;
		found |= bit;
		at += n;
		if (!*at)
			break;
	}
	*ret_scopes = found;
	return 0;
}

// Exactly n digits at text.
static int decode_digits(const char *text, int n, int *ret)
{
	int v = 0;
	for (int i = 0; i < n; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -EINVAL;
		v = v * 10 + (text[i] - '0');
	}
	*ret = v;
	return 0;
}

int bearer_decode_date(const char *text, int64_t *ret_seconds)
{
	struct tm t = {0}, same;
	size_t n = strlen(text);
	if (n != 10 && n != 20)
		return -EINVAL;
	if (decode_digits(text, 4, &t.tm_year) || text[4] != '-' || decode_digits(text + 5, 2, &t.tm_mon) || text[7] != '-' ||
	    decode_digits(text + 8, 2, &t.tm_mday))
		return -EINVAL;
	if (n == 20 && (text[10] != 'T' || decode_digits(text + 11, 2, &t.tm_hour) || text[13] != ':' ||
			decode_digits(text + 14, 2, &t.tm_min) || text[16] != ':' || decode_digits(text + 17, 2, &t.tm_sec) ||
			text[19] != 'Z'))
		return -EINVAL;
	t.tm_year -= 1900;
	t.tm_mon--;
	same = t;
	time_t seconds = timegm(&same);      // normalises: a 31st of February comes back as another day
	if (same.tm_year != t.tm_year || same.tm_mon != t.tm_mon || same.tm_mday != t.tm_mday || same.tm_hour != t.tm_hour ||
	    same.tm_min != t.tm_min || same.tm_sec != t.tm_sec || seconds <= 0)
		return -EINVAL;
	*ret_seconds = seconds;
	return 0;
}

static int decode_number(const char *text, uint64_t max, uint64_t *ret)
{
	uint64_t v = 0;
	if (!*text)
		return -EINVAL;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || __builtin_mul_overflow(v, 10, &v) ||
			__builtin_add_overflow(v, (uint64_t)(*text - '0'), &v))
			return -EINVAL;
	}
	if (v < 1 || v > max)
		return -EINVAL;
	*ret = v;
	return 0;
}

// Words between blanks; more than MAX_WORDS, a long one, or a byte that is not printable ASCII: -EINVAL.
static int split(const char *line, size_t n, char words[MAX_WORDS][WORD_BYTES], size_t *ret_n)
{
	size_t n_words = 0, length = 0;
	for (size_t i = 0; i < n; i++) {
		bool blank = line[i] == ' ' || line[i] == '\t';
		if (!blank && (line[i] < 0x21 || line[i] > 0x7e))
			return -EINVAL;
		if (blank) {
			length = 0;
			continue;
		}
		if ((length == 0 && n_words++ == MAX_WORDS) || length == WORD_BYTES - 1)
			return -EINVAL;
		words[n_words - 1][length++] = line[i];
		words[n_words - 1][length] = '\0';
	}
	*ret_n = n_words;
	return 0;
}

enum { SEEN_RATE = 1, SEEN_IN_FLIGHT = 2, SEEN_K = 4, SEEN_EXPIRES = 8 };

static int decode_quota(const char *word, struct bearer *t, unsigned *seen, struct error *err)
{
	static const struct { const char *key; unsigned bit; uint64_t max; } keys[] = {
		{"rate=", SEEN_RATE, BEARER_MAX_RATE}, {"in-flight=", SEEN_IN_FLIGHT, BEARER_MAX_IN_FLIGHT},
		{"k-max=", SEEN_K, BEARER_MAX_K}, {"expires=", SEEN_EXPIRES, 0}};
	size_t i = 0;
	uint64_t v = 0;
	while (i < sizeof keys / sizeof *keys && strncmp(word, keys[i].key, strlen(keys[i].key)) != 0)
		i++;
	if (i == sizeof keys / sizeof *keys)
		return error_set(err, ERROR_INVALID, "tokens", "after the scopes come rate=, in-flight=, k-max= and expires=");
	const char *value = word + strlen(keys[i].key);
	if (*seen & keys[i].bit)
		return error_set(err, ERROR_INVALID, "tokens", "%s is given twice", keys[i].key);
	*seen |= keys[i].bit;
	if (keys[i].bit == SEEN_EXPIRES)
		return bearer_decode_date(value, &t->expires) ?
			error_set(err, ERROR_INVALID, "tokens", "expires= takes YYYY-MM-DD or YYYY-MM-DDThh:mm:ssZ") : 0;
	if (decode_number(value, keys[i].max, &v))
		return error_set(err, ERROR_INVALID, "tokens", "%s takes a number from 1 to %llu", keys[i].key,
			(unsigned long long)keys[i].max);
	if (keys[i].bit == SEEN_RATE)
		t->rate = v;
	else
		*(keys[i].bit == SEEN_K ? &t->k_max : &t->in_flight) = (uint32_t)v;
	return 0;
}

int bearer_decode(const char *line, size_t n, struct bearer *ret_bearer, struct error *err)
{
	struct bearer t = {0};
	char words[MAX_WORDS][WORD_BYTES];
	size_t n_words = 0;
	unsigned seen = 0;
	if (n > BEARER_LINE_MAX || split(line, n, words, &n_words) || n_words < 3)
		return error_set(err, ERROR_INVALID, "tokens", "a token is a line of NAME DIGEST SCOPES and its limits");
	if (!bearer_name_is_valid(words[0]))
		return error_set(err, ERROR_INVALID, "tokens", "a name has 1 to %d letters, digits, '.', '_' or '-'", BEARER_NAME_MAX);
	if (content_id_from_hex(words[1], &t.digest))
		return error_set(err, ERROR_INVALID, "tokens", "the second word is not a SHA-256 digest of 64 hexadecimal digits");
	if (bearer_decode_scopes(words[2], &t.scopes))
		return error_set(err, ERROR_INVALID, "tokens", "scopes are some of score,generate,train,admin; or none");
	for (size_t i = 3; i < n_words; i++) {
		int r = decode_quota(words[i], &t, &seen, err);
		if (r)
			return r;
	}
	memcpy(t.name, words[0], strlen(words[0]) + 1);
	*ret_bearer = t;
	return 0;
}

void bearer_encode(struct buffer *b, const struct bearer *t)
{
	char hex[CONTENT_ID_HEX], date[32];
	const char *comma = "";
	time_t seconds = t->expires;
	struct tm tm;
	content_id_to_hex(&t->digest, hex);
	buffer_printf(b, "%s %s ", t->name, hex);
	for (size_t i = 0; i < N_SCOPES; i++) {
		if (!(t->scopes & scopes[i].bit))
			continue;
		buffer_printf(b, "%s%s", comma, scopes[i].name);
		comma = ",";
	}
	buffer_text(b, t->scopes ? "" : "none");
	if (t->rate)
		buffer_printf(b, " rate=%llu", (unsigned long long)t->rate);
	if (t->in_flight)
		buffer_printf(b, " in-flight=%u", t->in_flight);
	if (t->k_max)
		buffer_printf(b, " k-max=%u", t->k_max);
	if (t->expires && gmtime_r(&seconds, &tm) && strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm))
		buffer_printf(b, " expires=%s", date);
}

struct content_id bearer_digest(const char *secret, size_t n)
{
	return content_id_of(secret, n);
}

// base64url of 256 bits: six bits to a digit, the last four bits padded with zeros.
int bearer_new_secret(char ret_secret[BEARER_SECRET_BYTES])
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	uint8_t random[33] = {0};
	if (getrandom(random, 32, 0) != 32)
		return -EIO;
	memcpy(ret_secret, "kds_", 4);
	for (unsigned i = 0; i < 43; i++) {
		unsigned bit = i * 6, pair = (unsigned)random[bit / 8] << 8 | random[bit / 8 + 1];
		ret_secret[4 + i] = digits[pair >> (10 - bit % 8) & 63];
	}
	ret_secret[47] = '\0';
	explicit_bzero(random, sizeof random);
	return 0;
}
