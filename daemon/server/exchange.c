// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/exchange.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/server/service.h"

static const struct exchange_kind *const kinds[] = {&exchange_score, &exchange_generate, &exchange_openai};

const struct exchange_kind *exchange_find(const char *path)
{
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (strcmp(kinds[i]->path, path) == 0)
			return kinds[i];
	return NULL;
}

int exchange_new(const struct exchange_kind *kind, struct service *service, enum request_door door, void *owner,
		 void (*complete)(struct request_item *item), struct exchange **ret_exchange, struct error *err)
{
	struct exchange *x = calloc(1, sizeof *x);
	if (!x)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	*x = (struct exchange){.kind = kind, .service = service, .door = door, .owner = owner, .complete = complete,
		.text = REQUEST_JSON, .content_type = "application/json"};
	*ret_exchange = x;
	return 0;
}

struct exchange *exchange_free(struct exchange *x, bool cancelled)
{
	if (!x)
		return NULL;
	if (cancelled)
		exchange_cancel(x);
	x->kind->done(x);
	for (uint32_t i = 0; i < x->n_requests; i++)
		service_finish(x->service, x->requests[i]);
	free(x);
	return NULL;
}

int exchange_start(struct exchange *x, struct principal *principal, const char *body, size_t n, struct error *err)
{
	int r = service_check_ready(x->service, err);
	x->principal = principal;
	if (!r)
		r = x->kind->start(x, body, n, err);
	x->principal = NULL;
	if (r && !x->counted)
		service_reject(x->service, x->door, err->code);
	return r;
}

int exchange_submit(struct exchange *x, struct request *r, struct error *err)
{
	uint32_t n_items = r->n_items;
	r->door = x->door;
	r->text = x->text;
	r->shown_bytes = x->n_requests ? 0 : x->shown_bytes;     // once, whoever answers
	r->principal = x->principal;
	r->owner = x;
	r->complete = x->complete;
	x->n_left += n_items;
	int result = (r->generate ? service_generate : service_score)(x->service, r, err);
	if (result) {
		x->n_left -= n_items;
		x->counted = true;
		return result;
	}
	x->requests[x->n_requests++] = r;
	return 0;
}

bool exchange_take(struct exchange *x, struct request_item *item)
{
	if (!request_item_take(item))
		return false;
	x->n_left--;
	if (x->kind->taken)
		x->kind->taken(x, item);
	return true;
}

bool exchange_is_ready(const struct exchange *x)
{
	return x->n_left == 0 || (x->kind->is_ready && x->kind->is_ready(x));
}

int exchange_check(const struct exchange *x, struct error *err)
{
	if (x->kind->check)
		return x->kind->check(x, err);
	for (uint32_t i = 0; i < x->n_requests; i++)
		for (uint32_t j = 0; j < x->requests[i]->n_items; j++)
			if (x->requests[i]->items[j].error.code) {
				*err = x->requests[i]->items[j].error;
				return error_errno(err->code);
			}
	return 0;
}

void exchange_cancel(struct exchange *x)
{
	for (uint32_t i = 0; i < x->n_requests; i++)
		atomic_store(&x->requests[i]->cancelled, true);
}

void exchange_fail(struct exchange *x, enum error_code code)
{
	for (uint32_t i = 0; i < x->n_requests && code != ERROR_CANCELLED; i++)        // that is the client's doing, and counted as such
		x->requests[i]->fault = code;
}
