# SPDX-License-Identifier: Apache-2.0
"""Writes tests/fuzz/dictionaries/TARGET.dict: the words of each format, read out of the tables and parsers that know them. Run it anywhere."""
import os
import re

HERE = os.path.dirname(os.path.realpath(__file__))
TOP = os.path.join(HERE, "..", "..")


def text(*paths):
    return "".join(open(os.path.join(TOP, path), encoding="utf-8").read() for path in paths)


def strings(*paths, pattern=r'"([A-Za-z][A-Za-z0-9_.-]{1,40})"'):
    return sorted(set(re.findall(pattern, text(*paths))))


def options(path):
    rows = re.findall(r'^(?:OPTION|RELOADABLE)\(\w+, "([a-z0-9-]+)", (\w+), [^,]+, [^,]+, "[^"]*", "([^"]*)"', text(path), re.M)
    return [name for name, _, _ in rows] + sorted({c for _, _, choices in rows for c in choices.split("|") if c})


def server(*names):
    return strings(*("daemon/server/%s.c" % name for name in names), pattern=r'"([a-z][a-z0-9_]{1,20})"')


JSON = ["{", "}", "[", "]", ",", ":", "\"\"", "null", "true", "false", "0", "-1", "1e999", "-0", "1.5", "9223372036854775807", "9223372036854775808", "18446744073709551616",
        "\\u0000", "\\ud800", "\\ud83d\\ude00", "\\\"", "\xff", "[[[[[[[["]
NUMBERS = ["0", "-1", "1", "65535", "65536", "4294967295", "4294967296", "18446744073709551615", "18446744073709551616", "1e308", "nan", "inf", "0x10", ".5", "1.5"]
UNITS = ["K", "M", "G", "T", "ms", "s", "min", "h", "yes", "no", "on", "off", " = ", "\n", "#", "\r\n"]
MODEL = ("daemon/model/config_json.c", "daemon/model/config_gemma.c", "daemon/model/config_experts.c", "daemon/model/config_layernorm.c", "daemon/model/config_window.c")
TOKENIZER = ("daemon/model/tokenizer_json.c", "daemon/model/tokenizer_json_wordpiece.c", "daemon/model/normalizer.c", "daemon/model/pretokenizer.c")
LOSS = strings("daemon/loss/term.c", "daemon/loss/method.c", "daemon/loss/layer_map.c", "daemon/loss/schedule.c")
HTTP = ["GET ", "POST ", "HEAD ", "PUT ", "OPTIONS ", " HTTP/1.1\r\n", " HTTP/1.0\r\n", "HTTP/1.1", "\r\n", "\r\n\r\n", "\n", "\r", "\t", " ", ":", "Host: x\r\n", "Content-Length: ",
        "Content-Length: 2\r\n", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: ", "chunked", "identity", "Authorization: Bearer ", "Authorization: Basic ",
        "Content-Type: application/json\r\n", "Content-Encoding: gzip\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n", "Expect: 100-continue\r\n", "0\r\n\r\n", "2\r\n{}\r\n",
        ";a=b", "%00", "/live", "/v1/score", "http://x/", "\0", "Upgrade: x\r\n"]
ENVIRONMENT = ["NOTIFY_SOCKET=", "WATCHDOG_USEC=", "WATCHDOG_PID=self", "LISTEN_FDS=", "LISTEN_PID=self", "LISTEN_FDNAMES=", "STATE_DIRECTORY=", "RUNTIME_DIRECTORY=",
               "CREDENTIALS_DIRECTORY=", "JOURNAL_STREAM=", "http", "socket", ":", "/", "@", "unix:/", "tcp:", "127.0.0.1:0", "\0", "--"]

DICTIONARIES = {
    "json_request": JSON + server("json_score", "json_query", "json_generate", "json_openai", "json_choice", "json_weights", "json"),
    "reply": JSON + ["\"runs\":[", "\"progress\":", "\"state\":\"succeeded\"", "\"tokens\":[", "\"queue\":", "\"uptime_s\":", "\"degraded\":", "\"error\":", "\"message\":", "\"field\":", "\"points\":", "\"step\":", "\"loss\":", "\"held_out_kl\":", "\"learning_rate\":"],
    "run": JSON + ["\n"] + strings("daemon/train/run.c", "daemon/worker/progress.c", pattern=r'"([a-z_]{2,24})"'),
    "snapshot": JSON + ["krp1"] + strings("daemon/worker/snapshot_state.c", pattern=r'"([a-z_]{2,24})"'),
    "corpus": JSON + ["\"text\":", "\"prompt\":", "\"finish\":", "length", "<x>", "ab", "\n", "\r\n"],
    "source": JSON + ["\"tokens\":", "\"text\":", "\"gather\":", "\"spans\":", "\"first\":", "\"last\":", "\x93NUMPY\x01\x00", "'descr': '<u4'", "'fortran_order': False", "'shape': (3,)"],
    "line": JSON + strings("clients/kdctl/store_import_lines.c", "clients/kdctl/store_import_question.c", "clients/kdctl/store_note.c", pattern=r'"([a-z_]{2,24})"'),
    "note": strings("common/provenance.c", pattern=r'"([a-z_]{2,24})') + ["\n", " ", "="],
    "model_config": JSON + strings(*MODEL),
    "tokenizer_json": JSON + strings(*TOKENIZER),
    "safetensors": JSON + ["\"dtype\":", "\"shape\":", "\"data_offsets\":", "\"__metadata__\":", "F32", "F16", "BF16", "I8", "U8", "I64", "F8_E4M3"],
    "gguf": ["GGUF", "\x03\0\0\0"] + strings("daemon/model/config_gguf.c", "daemon/model/tokenizer_gguf.c", "daemon/model/gguf_source.c", "daemon/model/gguf_parts.c") +
            ["tokenizer.ggml." + k for k in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix")] +
            ["general.architecture", "general.alignment", "llama", "gpt2", "smollm"],
    "config": options("daemon/options.def") + NUMBERS + UNITS,
    "settings": options("daemon/train/run.def") + NUMBERS + UNITS + LOSS,
    "loss": LOSS + NUMBERS + ["=", ":", ",", "->", "-", " ", "\n", "%"],
    "environment": ENVIRONMENT + ["KDSERVED_" + o.upper().replace("-", "_") + "=" for o in options("daemon/options.def")] + NUMBERS,
    "address": ["unix:/", "tcp:", "localhost", "127.0.0.1", "0.0.0.0", "[::1]", "[::]", ":", ":0", ":65535", ":65536", "%lo", "score", "generate", "train", "admin", "none", ",", "2027-01-01",
                "T00:00:00Z"],
    "bearer": ["score", "generate", "train", "admin", "none", ",", "rate=", "in-flight=", "k-max=", "expires=", "2999-01-01", "T00:00:00Z", "\n", "\t", "#", "\0", "\0#\n", "kds_"],
    "header_gate": HTTP,
    "weight_index": JSON + ["\"weight_map\":", "\"metadata\":", "\"a\"", "\"b\"", "a.safetensors", "b.safetensors", "../", "\0", "\"dtype\":\"F32\"", "\"shape\":[2]", "\"data_offsets\":[0,8]"],
    "label": JSON + ["\"prompt\":", "\"item\":", "\"sample\":", "\"response\":", "\n", "\r\n", "\1\0\0", "\1\1\0", "\2\0", "\2\1"],
    "select": JSON + ["\"id\":", "\"tokens\":[1,2]", "\"spans\":[-1]", "\"rows\":[", "\"logits\":[1,2]", "\"max_prob\":0.5", "\"status\":\"ok\"", "\"text\":", "\"domain\":", "\"weights\":",
                      "{\"summary\":{}}", "\n", "\0", "\n\0"],
    "manifest": JSON + ["\"format\":1", "\"captures\":[", "\"id\":"],
    "sink": ["KDRC", "KDRC\3\0\0\0", "\1\0", "\1\1", "\1\2", "\n", "{\"id\":\""],
    "store": ["KDFR", "KDSE", "KDRC", "KDRZ", "KDINDEX\n\2\0\0\0", "KDSHARD\n", "\1\0", "\6\0", "\3\0\7", "\7\4\0"],
    "tls": ["-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\n", "-----END PRIVATE KEY-----\n", "-----BEGIN EC PRIVATE KEY-----\n", "-----BEGIN ", "\0", "\r\n"],
}
DICTIONARIES["tokens"] = DICTIONARIES["bearer"]
DICTIONARIES["gguf_parts"] = DICTIONARIES["gguf"]


def quoted(word):
    return '"%s"' % "".join(c if " " <= c <= "~" and c not in '"\\' else "\\x%02x" % ord(c) for c in word)


if __name__ == "__main__":
    folder = os.path.join(HERE, "dictionaries")
    os.makedirs(folder, exist_ok=True)
    for name, words in DICTIONARIES.items():
        with open(os.path.join(folder, name + ".dict"), "w", encoding="ascii") as f:
            f.write("".join(quoted(w) + "\n" for w in dict.fromkeys(words)))
