// SPDX-License-Identifier: Apache-2.0
// Addresses to listen on, as settings name them: what is taken is a whole socket address, says so again, and is on this machine only where
// it says so. The same text as the words of a line of tokens.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "common/bearer.h"
#include "common/error.h"
#include "daemon/server/address.h"
#include "tests/fuzz/fuzz.h"

static void require(bool holds)
{
	if (!holds)
		abort();
}

// As address_of_socket writes it.
static void address_write(const struct address *a, char *text, size_t size)
{
	char host[INET6_ADDRSTRLEN] = "";
	if (a->storage.ss_family == AF_UNIX) {
		snprintf(text, size, "unix:%s", ((const struct sockaddr_un *)&a->storage)->sun_path);
	} else if (a->storage.ss_family == AF_INET6) {
		inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)&a->storage)->sin6_addr, host, sizeof host);
		snprintf(text, size, "tcp:[%s]:%u", host, ntohs(((const struct sockaddr_in6 *)&a->storage)->sin6_port));
	} else {
		inet_ntop(AF_INET, &((const struct sockaddr_in *)&a->storage)->sin_addr, host, sizeof host);
		snprintf(text, size, "tcp:%s:%u", host, ntohs(((const struct sockaddr_in *)&a->storage)->sin_port));
	}
}

static void try_address(const char *text)
{
	struct address a, again;
	struct error err = {0};
	char written[ADDRESS_TEXT];
	if (address_parse(text, "http", &a, &err)) {
		require(err.code == ERROR_INVALID && strcmp(err.field, "http") == 0 && strncmp(err.message, "http", 4) == 0);
		return;
	}
	require(a.n_bytes > 0 && a.n_bytes <= sizeof a.storage);
	address_write(&a, written, sizeof written);
	require(address_parse(written, "http", &again, NULL) == 0);
	require(again.n_bytes == a.n_bytes && memcmp(&again.storage, &a.storage, a.n_bytes) == 0);
	require(address_is_remote(&a) == address_is_remote(&again));
}

static void try_words(const char *text)
{
	unsigned scopes = 0;
	int64_t seconds = 0;
	if (bearer_decode_scopes(text, &scopes) == 0)
		require(scopes < 16 && (scopes || strcmp(text, "none") == 0));
	if (bearer_decode_date(text, &seconds) == 0)
		require(seconds > 0 && seconds < INT64_C(253402300800));     // the year 10000
	if (bearer_name_is_valid(text))
		require(strlen(text) >= 1 && strlen(text) <= BEARER_NAME_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	require(text != NULL);
	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	try_address(text);
	try_words(text);
	free(text);
	return 0;
}
