// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/directory.h"

#include <stdio.h>
#include <string.h>

#include "common/text.h"
#include "daemon/model/weights_internal.h"

enum family { ANY, GPT2, BERT, GEMMA3, N_FAMILIES };

static bool is_of(const struct architecture *a, enum family family)
{
	const bool all[N_FAMILIES] = {true, a->learned_positions && !a->masked, a->masked, a->gemma && a->qk_norm};
	return all[family];
}

// Without "transformer." (GPT-2); a layer norm's gain gamma and its bias beta (BERT).
static void name_old(const char *name, char ret[STORED_NAME])
{
	static const char prefix[] = "transformer.";
	snprintf(ret, STORED_NAME, "%s", text_begins(name, prefix) ? name + sizeof prefix - 1 : name);
	size_t n = strlen(ret);
	if (text_ends(ret, "LayerNorm.weight"))
		snprintf(ret + n - 6, 6, "gamma");
	if (text_ends(ret, "LayerNorm.bias"))
		snprintf(ret + n - 4, 5, "beta");
}

// The text half of a model that sees, as published.
static void name_text(const char *name, char ret[STORED_NAME])
{
	snprintf(ret, STORED_NAME, "language_model.%s", name);
}

// The same, as transformers saves it since 4.52; the head stands outside.
static void name_inner_text(const char *name, char ret[STORED_NAME])
{
	static const char prefix[] = "model.";
	if (text_begins(name, prefix))
		snprintf(ret, STORED_NAME, "model.language_model.%s", name + sizeof prefix - 1);
	else
		snprintf(ret, STORED_NAME, "%s", name);
}

static bool is_there(const struct safetensors *file, const char *name)
{
	struct tensor t;
	return safetensors_find(file, name, &t, NULL) == 0;
}

const char *directory_name(const struct safetensors *file, const struct architecture *a, const char *name, char buffer[STORED_NAME])
{
	static const struct { enum family family; void (*make)(const char *name, char ret[STORED_NAME]); } others[] = {
		{GPT2, name_old}, {BERT, name_old}, {GEMMA3, name_text}, {GEMMA3, name_inner_text},
	};
	if (is_there(file, name))
		return name;
	for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
		if (!is_of(a, others[i].family))
			continue;
		others[i].make(name, buffer);
		if (is_there(file, buffer))
			return buffer;
	}
	return name;
}

// Rotation tables and masks that old exporters saved, a second copy of a tied head, BERT's other head with what only it reads, and the eyes
// of a model whose text half is served. transformers ignores them as well.
bool directory_ignores(const struct safetensors *file, const struct architecture *a, const char *name)
{
	static const struct { enum family family; const char *begin, *end; } ignored[] = {
		{ANY, "", ".rotary_emb.inv_freq"}, {GPT2, "", ".attn.bias"}, {GPT2, "", ".attn.masked_bias"},
		{BERT, "bert.embeddings.position_ids", ""}, {BERT, "bert.pooler.", ""}, {BERT, "cls.seq_relationship.", ""},
		{BERT, "cls.predictions.decoder.bias", ""}, {GEMMA3, "vision_tower.", ""}, {GEMMA3, "multi_modal_projector.", ""},
		{GEMMA3, "model.vision_tower.", ""}, {GEMMA3, "model.multi_modal_projector.", ""},
	};
	char head[96], buffer[STORED_NAME];
	parameters_name(a, PARAMETER_HEAD, head);
	if (a->tied_head && !strcmp(name, directory_name(file, a, head, buffer)))
		return true;
	for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
		if (is_of(a, ignored[i].family) && text_begins(name, ignored[i].begin) && text_ends(name, ignored[i].end))
			return true;
	return false;
}
