#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""EleutherAI's lm-eval with its own `local-completions` client against kdserved, and with its `hf` backend on the same weights: every
item's log-likelihood must agree within 1e-3. Tasks and data are made here; nothing is downloaded but the packages.

    lm_eval_harness.py [--gguf FILE] [--hf-dtype TYPE ...] [--build DIR] [--venv DIR] [--json FILE]

Without --gguf the weights are those of the tests' tiny model. The hf backend computes in float64 unless told otherwise: in float32 its
own sums over a text of a thousand tokens and 49152 ids are off by 2e-2, which says nothing of ours. With several types all are compared,
and the first decides. The daemon is the one built in --build (default: the environment's top_builddir, else the working directory). Exit
status 0 when all agree.
"""
import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import peer

PACKAGES = {"torch": "torch", "transformers": "transformers", "gguf": "gguf", "accelerate": "accelerate", "lm_eval": "lm-eval[api]==0.4.13"}
WINDOW = 128       # tokens: longer texts are scored in pieces, by the same rule on both sides
TOLERANCE = 1e-3

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "the sky on a clear day": "blue", "a ripe tomato": "red",
           "a lemon": "yellow"}
YOUNG = {"cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal", "sheep": "lamb", "goose": "gosling", "bear": "cub", "goat": "kid"}


def choice_items():
    """Questions with three answers each, made by rule."""
    def item(question, right, wrong, place):
        choices = list(wrong)
        choices.insert(place, right)
        return {"question": question, "choices": choices, "answer": place}
    for i, day in enumerate(DAYS):
        yield item("The day after %s is" % day, DAYS[(i + 1) % 7], [DAYS[(i + 3) % 7], DAYS[(i + 5) % 7]], i % 3)
        yield item("The day before %s is" % day, DAYS[i - 1], [DAYS[(i + 2) % 7], DAYS[(i + 4) % 7]], (i + 1) % 3)
    colours = sorted(set(COLOURS.values()))
    for i, (thing, colour) in enumerate(COLOURS.items()):
        others = [c for c in colours if c != colour]
        yield item("The colour of %s is" % thing, colour, [others[i % 5], others[(i + 2) % 5]], i % 3)
    young = list(YOUNG.values())
    for i, (animal, name) in enumerate(YOUNG.items()):
        yield item("A young %s is called a" % animal, name, [young[(i + 3) % 8], young[(i + 5) % 8]], (i + 2) % 3)
    for a in range(2, 8):
        for b in (3, 5, 8, 11):
            yield item("%d plus %d makes" % (a, b), str(a + b), [str(a + b + 1), str(a * b + 20)], (a + b) % 3)


def texts():
    return (peer.TOP / "tests" / "golden" / "texts.txt").read_text(encoding="utf-8").rstrip("\n").split("\n%%\n")


def last_word_items():
    """Sentences and lines of the tests' texts without their last word."""
    for text in texts():
        for sentence in re.split(r"(?<=[.;:!?]) |\n+", text):
            context, _, word = sentence.rpartition(" ")
            if len(context.split()) >= 3 and word:
                yield {"context": context.strip(), "word": " " + word}


TASKS = {
    "kd_choices": (choice_items, """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""),
    "kd_last_word": (last_word_items, """output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{word}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""),
    "kd_rolling": (lambda: ({"text": t} for t in texts()), """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""),
}


def write_tasks(folder):
    for name, (items, form) in TASKS.items():
        with open(folder / (name + ".jsonl"), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(item) + "\n" for item in items())
        head = "task: %s\ndataset_path: json\ndataset_kwargs: {data_files: {test: %s}}\ntest_split: test\n%s"
        (folder / (name + ".yaml")).write_text(head % (name, folder / (name + ".jsonl"), form))


def evaluate(model, arguments, folder, **more):
    """task -> [(log-likelihood, greedy), ...] of all requests in order, and the harness's own results."""
    import lm_eval
    from lm_eval.tasks import TaskManager
    found = lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=list(TASKS), log_samples=True, bootstrap_iters=0,
                                    cache_requests=False, **more,
                                    task_manager=TaskManager(include_path=str(folder), include_defaults=False))
    scores = {}
    for task, samples in found["samples"].items():
        answers = [r for s in sorted(samples, key=lambda s: s["doc_id"]) for r in s["resps"]]
        while isinstance(answers[0], list):    # one response to each request
            answers = [a[0] for a in answers]
        scores[task] = [(float(a[0]), str(a[1]) == "True") if isinstance(a, tuple) else (float(a), None) for a in answers]
    return scores, {task: {k: v for k, v in r.items() if "stderr" not in k} for task, r in found["results"].items()}


def compare(ours, theirs, name):
    worst, rows = 0.0, []
    for task in TASKS:
        differences = [abs(a[0] - b[0]) for a, b in zip(ours[task], theirs[task])]
        greedy = sum(a[1] != b[1] for a, b in zip(ours[task], theirs[task]))
        if len(ours[task]) != len(theirs[task]) or len(differences) < 20:
            sys.exit("%s: %d and %d answers" % (task, len(ours[task]), len(theirs[task])))
        rows.append({"against": name, "task": task, "answers": len(differences), "largest_difference": max(differences),
                     "is_greedy_differs": greedy, "largest_magnitude": max(abs(a[0]) for a in theirs[task])})
        worst = max(worst, rows[-1]["largest_difference"])
    return rows, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="a GGUF file whose weights both sides read, as f32")
    parser.add_argument("--hf-dtype", nargs="+", default=["float64"], help="in which the hf backend computes [float64]")
    parser.add_argument("--build", default=os.environ.get("top_builddir", os.getcwd()))
    parser.add_argument("--venv")
    parser.add_argument("--json", help="write the figures here")
    a = parser.parse_args()
    peer.need(PACKAGES, a.venv)
    os.environ.update(top_builddir=os.path.abspath(a.build), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1",
                      CUDA_VISIBLE_DEVICES="", OPENAI_API_KEY="none")
    from kdserved import Daemon
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        model = peer.model_directory(folder / "model", a.gguf)
        write_tasks(folder)
        hf = {dtype: evaluate("hf", {"pretrained": str(model), "dtype": dtype, "device": "cpu", "max_length": WINDOW}, folder, batch_size=1)
              for dtype in a.hf_dtype}
        with Daemon(model=str(model), patience=600) as daemon:
            # max_length: the client takes off one for the token it asks to be generated, and its rolling windows another
            kd, kd_results = evaluate("local-completions", {
                "model": daemon.get("/v1/models")[1]["data"][0]["id"], "base_url": "http://127.0.0.1:%d/v1/completions" % daemon.port,
                "tokenizer": str(model), "tokenizer_backend": "huggingface", "tokenized_requests": True, "num_concurrent": 4,
                "max_length": WINDOW + 2}, folder, batch_size=8)
    print("%-14s %-14s %8s %14s %14s %10s" % ("against hf in", "task", "answers", "largest |ll|", "largest diff", "greedy !="))
    rows, worst = [], []
    for dtype in a.hf_dtype:
        found, largest = compare(kd, hf[dtype][0], dtype)
        rows += found
        worst.append(largest)
        for r in found:
            print("%-14s %-14s %8d %14.3f %14.2e %10d" % (dtype, r["task"], r["answers"], r["largest_magnitude"], r["largest_difference"],
                                                          r["is_greedy_differs"]))
    for task in TASKS:
        print(task, "kdserved", kd_results[task], *("hf " + dtype + " " + str(hf[dtype][1][task]) for dtype in a.hf_dtype))
    if a.json:
        Path(a.json).write_text(json.dumps({"tasks": rows, "kdserved": kd_results, "hf": {d: h[1] for d, h in hf.items()}}, default=str))
    print("largest difference of an item: %.2e (limit %g)" % (worst[0], TOLERANCE))
    return worst[0] > TOLERANCE or any(r["is_greedy_differs"] for r in rows if r["against"] == a.hf_dtype[0])


if __name__ == "__main__":
    sys.exit(main())
