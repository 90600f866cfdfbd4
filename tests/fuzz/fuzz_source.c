// SPDX-License-Identifier: Apache-2.0
// What kdctl score reads: JSON lines, plain token files, NumPy arrays. First byte: which. Every item must keep its promises.
#include <stdarg.h>
#include <stdlib.h>

#include "clients/kdctl/score.h"
#include "tests/fuzz/fuzz.h"

// What the program says and whom it asks is not looked at here.
int kdctl_fail(const struct kdctl *k, const char *format, ...)
{
	char text[1024];
	va_list arguments;
	(void)k;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	return 1;
}

json_t *kdctl_call(struct kdctl *k, const char *method, const char *path, json_t *body)
{
	(void)k, (void)method, (void)path;
	json_decref(body);
	return json_pack("{s:[i,i,i]}", "tokens", 1, 2, 3);
}

static void check(const struct item *i, const struct score_options *o)
{
	uint64_t sum = i->number;
	if (!i->n_tokens || i->n_tokens > o->length)
		abort();
	for (uint32_t t = 0; t < i->n_tokens; t++)
		sum += i->tokens[t];
	for (uint32_t s = 0; s < i->n_spans; s++)
		sum += i->spans[s].begin + i->spans[s].end;
	for (uint32_t l = 0; l < i->n_lists; l++)
		if (i->gather_offsets[l] > i->gather_offsets[l + 1])
			abort();
	for (uint32_t g = 0; i->n_lists && g < i->gather_offsets[i->n_lists]; g++)
		sum += i->gather_ids[g];
	if (sum == UINT64_MAX)
		abort();       // it is not; but every byte was read
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const enum source_format formats[] = {SOURCE_LINES, SOURCE_U16, SOURCE_U32, SOURCE_NPY};
	struct kdctl k = {0};
	if (size < 2)
		return 0;
	struct score_options o = {.path = "-", .format = formats[data[0] & 3], .length = 1 + (data[0] >> 4), .sum = data[0] & 4};
	struct source s = {.k = &k, .options = &o, .item_bytes = o.format == SOURCE_U16 ? 2 : 4};
	struct item *i = NULL;
	s.file = fmemopen((void *)(data + 1), size - 1, "r");
	if (!s.file)
		return 0;
	int status = o.format == SOURCE_NPY ? source_open_npy(&s) : 0;
	while (!status && !(status = source_next(&s, &i)) && i) {
		check(i, &o);
		i = item_free(i);
	}
	source_close(&s);
	return 0;
}
