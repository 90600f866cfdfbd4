// SPDX-License-Identifier: Apache-2.0
// What a service was opened with, for those who answer about it.
#include "daemon/server/service_internal.h"

struct teacher *service_teacher(const struct service *s)
{
	return s->teacher;
}

struct auth *service_auth(const struct service *s)
{
	return s->options.auth;
}

struct store *service_store(const struct service *s)
{
	return s->store;
}

struct supervisor *service_supervisor(const struct service *s)
{
	return s->supervisor;
}

struct reloads *service_reloads(struct service *s)
{
	return &s->reloads;
}

struct tls_current *service_tls(const struct service *s)
{
	return s->options.tls;
}

const struct faults *service_faults(const struct service *s)
{
	return s->options.faults;
}
