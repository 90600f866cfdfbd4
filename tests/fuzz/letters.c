// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/letters.h"

#include <stdlib.h>

const struct tokenizer *letters(void)
{
	static const char json[] =
		"{\"version\":\"1.0\",\"added_tokens\":[{\"id\":4,\"content\":\"<x>\",\"special\":true}],\"normalizer\":null,"
		"\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
		"\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
		"\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\xc4\xa0\":3},\"merges\":[\"a b\"]}}";
	static struct tokenizer *t;
	if (!t && tokenizer_open_json(json, sizeof json - 1, &t, NULL))
		abort();
	return t;
}
