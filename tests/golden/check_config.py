#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""No field of config.json is ignored that changes a number: check_config.py [FAMILY...].

For a tiny model of each family, every field that its class in transformers knows, and every field that another family has, is changed in
turn (another value, null, left out). transformers loads what results; kdserved must then give transformers' logits (1e-5, float64), or
refuse the file; where transformers has to make weights up, only a refusal will do. Prints what is refused, with the words, and what
transformers alone refuses, and fails where a number is another. Needs the built test_tiny ($top_builddir) and the packages torch and transformers;
exits 77 (skipped) where these cannot be imported. A minute or two a family."""
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings

try:
    import torch
    import transformers
except ImportError as missing:
    print("skipped:", missing)
    sys.exit(77)

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.environ.get("top_builddir", "."), "tests", "golden", "test_tiny")
FAMILIES = ["llama", "llama-tied", "llama3", "mistral", "qwen2", "qwen3", "qwen3-window", "gemma2", "gemma3", "mixtral", "qwen3-moe", "gpt2",
            "bert", "gemma3-vision", "yarn", "yarn-open", "dynamic", "longrope", "bias", "phi3", "phi3-window", "smollm3",
            "smollm3-list", "granite"]
ABSENT = object()
LENGTH = 40
SHORT = {"longrope": 30, "phi3": 30}      # within the original context
# Of training, of other heads, and of what a call returns.
NO_NUMBER = re.compile(r"output_.*|return_dict|use_cache|initializer_range|.*dropout.*|.*pdrop|problem_type|id2label|label2id|transformers_version|"
                       r"_name_or_path|is_encoder_decoder|summary_.*|pad_token_id|router_.*|dtype|torch_dtype|vision_config|mm_tokens_per_image|"
                       r"[be]oi_token_index|image_token_index")

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
ROPES = [{"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}, {"rope_type": "dynamic", "factor": 2.0},
         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, {"rope_type": "llama3", **LLAMA3},
         {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
         {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32},
         {"rope_type": "default", "rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}, {},
         {"full_attention": {"rope_type": "linear", "factor": 4.0}}, {"full_attention": {"rope_type": "default", "rope_theta": 500.0}},
         {"sliding_attention": {"rope_type": "default", "rope_theta": 77.0}}, {"sliding_attention": {"rope_type": "linear", "factor": 4.0}},
         {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "beta_fast": 3, "beta_slow": 0.5, "truncate": False, "mscale": 0.5,
          "mscale_all_dim": 2.0}, {"type": "yarn", "factor": 1.5, "attention_factor": 1.4, "truncate": None, "beta_fast": 0},
         {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0}, {"rope_type": "yarn", "factor": None},
         {"rope_type": "longrope", "short_factor": [1.5] * 4, "long_factor": [2.0] * 4, "attention_factor": 1.2},
         {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.5] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64},
         {"type": "su", "short_factor": [1.5] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64},
         {"rope_type": "longrope", "short_factor": [1.5] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 64},
         {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.5}]
# What other families, or older and newer files, have.
FOREIGN = {
    "rope_theta": [500.0], "rope_scaling": ROPES, "rope_parameters": ROPES, "rope_local_base_freq": [77.0], "partial_rotary_factor": [0.5],
    "original_max_position_embeddings": [16], "sliding_window": [4, 1], "use_sliding_window": [True, False], "max_window_layers": [0, 1],
    "sliding_window_pattern": [1, 2, 3], "layer_types": [["sliding_attention", "full_attention"], ["full_attention", "sliding_attention"]],
    "attention_bias": [True], "mlp_bias": [True], "head_dim": [8, 16, 32], "query_pre_attn_scalar": [8, 64], "attn_logit_softcapping": [1.5],
    "final_logit_softcapping": [1.5], "norm_topk_prob": [True, False], "num_experts": [2], "num_local_experts": [2], "num_experts_per_tok": [1],
    "mlp_only_layers": [[0], [1]], "decoder_sparse_step": [2], "moe_intermediate_size": [8], "hidden_act": ["gelu", "relu", "swish"],
    "hidden_activation": ["gelu", "silu"], "activation_function": ["gelu", "relu", "gelu_new"], "rms_norm_eps": [1e-2], "layer_norm_eps": [1e-2],
    "layer_norm_epsilon": [1e-2], "tie_word_embeddings": [True, False], "use_bidirectional_attention": [True], "is_decoder": [True],
    "per_layer_config": [{"1": {"sliding_window": 3}}], "model_type": ["llama", "mistral", "qwen2", "qwen3", "gpt2"],
    "architectures": [["LlamaForCausalLM"], ["MistralForCausalLM"], ["Qwen2ForCausalLM"], None], "scale_attn_weights": [False],
    "scale_attn_by_inverse_layer_idx": [True], "reorder_and_upcast_attn": [True], "position_embedding_type": ["relative_key"],
    "add_cross_attention": [True], "num_attention_heads": [2, 8], "n_head": [2, 8], "num_hidden_layers": [1], "n_layer": [1],
    "logits_scaling": [4.0], "residual_multiplier": [0.5], "embedding_multiplier": [3.0], "attention_multiplier": [0.3],
    "no_rope_layers": [[1, 0, 1, 0, 1, 0], [0], None], "no_rope_layer_interval": [2, 0], "quantization_config": [{"quant_method": "gptq", "bits": 4}], "chunk_size_feed_forward": [8], "type_vocab_size": [1],
}


def others(value):
    """Values of the same kind, and what is like none."""
    if isinstance(value, bool):
        return [not value, None, ABSENT]
    if isinstance(value, int):
        return [value + 1, 2 * value, max(1, value // 2), 0, None, ABSENT]
    if isinstance(value, float):
        return [3 * value + 0.1, None, ABSENT]
    return [None, ABSENT]


def reference(where, length):
    """transformers' float64 logits of one sequence, or why there are none."""
    config = json.load(open(os.path.join(where, "config.json")))
    masked = "bert" in str(config.get("model_type"))
    factory = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    plain = {"experts_implementation": "eager"} if "num_experts_per_tok" in config and "intermediate_size" in config else {}
    try:
        model, report = factory.from_pretrained(where, dtype=torch.float64, attn_implementation="eager", output_loading_info=True, **plain)
        made_up = [k for kind in ("missing_keys", "mismatched_keys") for k in report.get(kind) or []]
        if made_up:
            return None, "weights made up: %s" % (made_up[0],)
        tokens = torch.arange(3, 3 + length) * 7 % model.config.get_text_config().vocab_size
        with torch.no_grad():
            logits = model.eval()(tokens[None]).logits[0]
        return (tokens.tolist(), logits), None
    except Exception as e:                                             # whatever it dislikes
        return None, "%s: %s" % (type(e).__name__, str(e).split("\n")[0][:80])


def write_golden(where, tokens, logits):
    with open(os.path.join(where, "golden.bin"), "wb") as f:
        f.write(b"KDGM" + struct.pack("<3I", 1, logits.shape[1], len(tokens)) + struct.pack("<%dI" % len(tokens), *tokens)
                + logits.to(torch.float32).numpy().astype("<f4").tobytes())


def ours(top, name):
    done = subprocess.run([TINY, name], env={**os.environ, "top_srcdir": top}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=60)
    lines = done.stdout.strip().split("\n")
    said = next((line for line in lines if "relative logit error" in line and "bound" in line), None)
    return done.returncode == 0, said or next((line for line in lines if line and "[" not in line[:2]), "")


def part_cases(config, full):
    for key in sorted(key for key in {*full, *FOREIGN} if not NO_NUMBER.fullmatch(key)):
        values = others(config[key] if key in config else full.get(key)) + FOREIGN.get(key, []) if key in full else FOREIGN[key]
        for value in values:
            if key in ("model_type", "architectures") and value and "text_config" in config or \
                    key == "model_type" and isinstance(value, str) and "hidden_size" not in config:
                continue                                               # another class would make its own size up: 7 billion
            if value is ABSENT and key not in config or value is not ABSENT and key in config and config[key] == value:
                continue
            yield key, value


def cases(config, full):
    """(what is changed, the config.json that results)"""
    for name in (None, "text_config"):
        part = config if name is None else config.get(name, {})
        for key, value in part_cases(part, full if name is None else full.get(name, {})) if part else ():
            changed = {k: v for k, v in part.items() if k != key}
            if value is not ABSENT:
                changed[key] = value
            what = "%s%s %s" % (name + "." if name else "", key, "left out" if value is ABSENT else json.dumps(value))
            yield what, {**config, name: changed} if name else changed


def check(top, family):
    source = os.path.join(HERE, "models", family)
    config = json.load(open(os.path.join(source, "config.json")))
    full = transformers.AutoConfig.from_pretrained(source).to_dict()
    where = os.path.join(top, "tests", "golden", "models", family)
    os.makedirs(where)
    for name in os.listdir(source):
        if "safetensors" in name:
            shutil.copy(os.path.join(source, name), where)
    counts, failed = {"alike": 0, "refused": 0, "refused by both": 0, "refused by transformers alone": 0}, []
    for what, changed in cases(config, full):
        with open(os.path.join(where, "config.json"), "w") as f:
            json.dump(changed, f)
        what = "%s: %s" % (family, what)
        found, reason = reference(where, SHORT.get(family, LENGTH))
        if found:
            write_golden(where, *found)
        else:                                                          # any logits will do: they must not be asked for
            write_golden(where, list(range(3)), torch.zeros(3, config.get("text_config", config)["vocab_size"], dtype=torch.float64))
        accepted, said = ours(top, family)
        if found and accepted:
            counts["alike"] += 1
        elif found and "relative logit error" in said:
            failed.append("%s: OTHER NUMBERS: %s" % (what, said))
        elif found:
            counts["refused"] += 1
            print("%s: refused: %s" % (what, said.replace("ERROR: " + where + ": ", "").replace(where, family)))
        elif "relative logit error" in said and "made up" in reason:
            failed.append("%s: ACCEPTED, but %s" % (what, reason))
        elif "relative logit error" in said:                           # null where a default would do, and the like
            counts["refused by transformers alone"] += 1
            print("%s: transformers alone refuses: %s" % (what, reason))
        else:
            counts["refused by both"] += 1
    print("%s: %s" % (family, ", ".join("%d %s" % (n, k) for k, n in counts.items())), flush=True)
    return failed


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failed = []
    with tempfile.TemporaryDirectory(prefix="config-") as top:
        for family in sys.argv[1:] or FAMILIES:
            failed += check(top, family)
    print("\n".join(failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
