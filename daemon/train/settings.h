// SPDX-License-Identifier: Apache-2.0
// Settings of one training run, from run.conf (run.def is the table). The supervisor checks a configuration with the same code
// that the worker reads it with, so a bad one is refused at the door.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/config.h"

struct error;
struct objective;

enum run_missing { RUN_MISSING_FAIL, RUN_MISSING_SKIP };
enum run_order { RUN_ORDER_SHUFFLED, RUN_ORDER_SEQUENTIAL };
// RUN_PACKING_OFF: documents apart, each in a place of its own.
enum run_packing { RUN_PACKING_WRAPPED, RUN_PACKING_BFD, RUN_PACKING_OFF };
enum run_family { RUN_FAMILY_LLAMA, RUN_FAMILY_GPT2, RUN_FAMILY_BERT };
enum run_precision { RUN_PRECISION_AUTO, RUN_PRECISION_F32, RUN_PRECISION_BF16 };
enum run_optimizer { RUN_OPTIMIZER_ADAMW, RUN_OPTIMIZER_LION };
enum run_quantize { RUN_QUANTIZE_NONE, RUN_QUANTIZE_INT8, RUN_QUANTIZE_INT4 };
enum run_guard { RUN_GUARD_OFF, RUN_GUARD_WARN, RUN_GUARD_STOP };
enum run_export { RUN_EXPORT_LAST, RUN_EXPORT_BEST };
enum run_export_type { RUN_EXPORT_F32, RUN_EXPORT_BF16, RUN_EXPORT_F16 };

struct run_settings {
	char *teacher, *server, *ca, *server_name, *teacher_id, *token_file, *store, *tokenizer, *student, *student_tokenizer,
		*from_layers, *rollouts;
	char *rollout_fresh, *corpus_field, *corpus_prompt;
	struct config_list corpus, losses, parameters, others;
	bool mlm, corpus_specials, tied_head, checkpointing;
	uint64_t patience;             // ms
	int64_t sequence_length, held_out_max, width, layers, heads, kv_heads, ffn_width, context_length;
	int64_t micro_batch, checkpointing_layers, accumulate, steps, warmup, seed, evaluate_every, early_stop,
		checkpoint_every, keep, threads;
	double mlm_probability, held_out, rope_theta, epochs, learning_rate, min_ratio, weight_decay, beta1, beta2, epsilon, clip, average;
	int precision, packing, optimizer, quantize, export_which, missing, order, export_type, values, feature_values, device, family;
	int64_t teacher_layers;
	int64_t rollout_prompt, rollout_tokens, rollout_replay;
	bool rollout_pairs;
	double rollout_share, rollout_temperature, rollout_mix, rollout_rise, rollout_margin;
	int guard;                     // enum run_guard
	double guard_fit;
	int64_t guard_checks;
	int domains;                   // not 0: each file of the corpus is one
	int64_t domains_every;
	double domains_alpha;
	int reweight;                  // enum reweight_kind
	double reweight_strength, reweight_temperature;
	int64_t reweight_after;
};

const struct config_option *settings_table(size_t *ret_n);
int settings_init(struct run_settings *s, struct error *err);      // every default
void settings_done(struct run_settings *s);                        // harmless twice and on zeroed memory
// Rules that hold between settings (each alone was checked when it was read). Errors name the key.
int settings_check(const struct run_settings *s, struct error *err);
// The directories of teacher = shards:DIR[,DIR...]; NULL: a live teacher.
const char *settings_shards(const struct run_settings *s);
// teacher = labels: nobody is asked, the corpus itself says which token follows.
bool settings_labels(const struct run_settings *s);
bool settings_rollouts(const struct run_settings *s);             // whether the student ever writes what it learns from
bool settings_adaptive(const struct run_settings *s);              // rollouts = adaptive: evaluations set the chance
// What the lines "loss" say, not yet begun; the caller frees it.
int settings_objective(const struct run_settings *s, struct objective **ret, struct error *err);
bool settings_is_llama(const struct run_settings *s);            // student-family; others have a key/value head for each head
const char *settings_device(const struct run_settings *s);         // "auto", "cpu", ...
// The settings that change a run's numbers, as lines "key = value", each key once, in the order of the table.
void settings_print_lines(FILE *to, const struct run_settings *s);
// ERROR_CONFLICT naming the first key that has another value than when the run began; keys that are not in both are not compared.
int settings_compare_lines(const char *began, const char *now, struct error *err);
