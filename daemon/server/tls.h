// SPDX-License-Identifier: Apache-2.0
// A server's certificate and its key, as PEM texts read from files.
#pragma once

struct error;

struct tls_files { char *certificate, *key; };     // both NULL = nothing is encrypted; zero-initialise

// certificate: with those that vouch for it, one after the other, its own first. A key that everybody may read is refused.
int tls_files_open(const char *certificate_path, const char *key_path, struct tls_files *ret_files, struct error *err);
void tls_files_close(struct tls_files *f);          // the key is wiped
