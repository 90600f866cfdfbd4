#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""TRL's own client code with kdserved as its teacher server.

TRL 1.16 asks a plain `vllm serve` for prompt_logprobs over /v1/completions. Here the same code, as it is installed from the index, asks
kdserved:

1. VLLMClient.get_sequence_logprobs (the client of ServerDistillationTrainer and SDPOTrainer);
2. _generate_one_turn and _score_with_teacher of AsyncDistillationTrainer's rollout worker, which takes any such server as the student's,
too;
3. ServerDistillationTrainer itself trains a student for some steps.

The log-probabilities must be those of transformers on the same weights within 1e-4. VLLMClient insists that the vllm package is
installed, which it needs for pushing weights to a student's server; that check alone is answered for it.

    trl_teacher.py [--gguf FILE] [--build DIR] [--venv DIR] [--json FILE]
"""
import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import peer

PACKAGES = {"torch": "torch", "transformers": "transformers", "gguf": "gguf", "accelerate": "accelerate", "requests": "requests",
            "aiohttp": "aiohttp", "datasets": "datasets", "trl": "trl==1.16.0"}
TOLERANCE = 1e-4


def reference(model, sequence):
    """(T, V) log-probabilities of each token given those before it; the first row stands for nothing."""
    import torch
    with torch.no_grad():
        logits = model(torch.tensor([sequence])).logits[0].double()
    return torch.cat([torch.zeros(1, logits.shape[1]), torch.log_softmax(logits, -1)[:-1]])


def check_position(expected, sequence, position, ids, values):
    """Largest difference of one position's list, which must be the likeliest ids in order (equal ones in any), perhaps with the own token
    behind."""
    own_behind = ids[-1] == sequence[position] and len(ids) > 1
    top = [expected[i].item() for i in (ids[:-1] if own_behind else ids)]
    best = expected.topk(len(top)).values.tolist() if top else []
    difference = max([abs(a - b) for a, b in zip(top, best)] + [abs(expected[i].item() - v) for i, v in zip(ids, values)])
    if len(set(ids)) != len(ids):
        sys.exit("position %d has an id twice" % position)
    return difference


def sync_client(url, model, sequences, lengths):
    """The client of the server-teacher trainers."""
    import trl.generation.vllm_client as code
    worst, answers = 0.0, 0
    with mock.patch.object(code, "is_vllm_available", return_value=True):
        client = code.VLLMClient(base_url=url, connection_timeout=10)
    for top, chunk in ((1, 0), (8, 2), (100, 3)):
        found = client.get_sequence_logprobs(sequences, lengths, top_logprobs=top, chunk_size=chunk)
        for i, (sequence, begin) in enumerate(zip(sequences, lengths)):
            expected = reference(model, sequence)
            if len(found["logprobs"][i]) != len(sequence) - begin:
                sys.exit("%d rows for %d tokens" % (len(found["logprobs"][i]), len(sequence) - begin))
            for at in range(begin, len(sequence)):
                row = found["logprob_token_ids"][i][at - begin], found["logprobs"][i][at - begin]
                if len(row[0]) != top or len(set(row[0])) != top:
                    sys.exit("position %d has %d ids, %d were asked" % (at, len(set(row[0])), top))
                best = expected[at].topk(top).values.tolist()
                own = found["actual_logprobs"][i][at - begin][0]
                worst = max([worst, abs(own - expected[at][sequence[at]].item())] + [abs(a - b) for a, b in zip(row[1], best)] +
                            [abs(expected[at][j].item() - v) for j, v in zip(*row)])
                answers += 1
    return {"client": "VLLMClient.get_sequence_logprobs", "positions": answers, "largest_difference": worst}


def async_client(url, model, sequences, lengths):
    """The rollout worker of the asynchronous trainer."""
    import aiohttp
    from accelerate import PartialState
    from trl.experimental.async_distillation import async_rollout_worker as code
    PartialState()    # its logger's
    worker = code._AsyncRolloutLoop(
        model_name="student", dataset=[], processing_class=None, eos_token_ids=[0], rollout_buffer=multiprocessing.Queue(),
        model_version_value=multiprocessing.Value("i", 0), heartbeat_value=multiprocessing.Value("d", 0),
        failed_event=multiprocessing.Event(), exception_info_queue=multiprocessing.Queue(), metrics_queue=multiprocessing.Queue(),
        teacher_server_urls={"default": url}, teacher_top_k=8)

    async def ask():
        async with aiohttp.ClientSession() as worker.session:
            await worker._resolve_teacher_model_names()
            worker.model_name = worker.teacher_model_names["default"]
            worker.vllm_server_url = url
            drawn = await asyncio.gather(*(worker._generate_one_turn(s[:n]) for s, n in zip(sequences, lengths)))
            return drawn, await asyncio.gather(*(worker._score_with_teacher(s[:n], s[n:], url, worker.model_name)
                                                 for s, n in zip(sequences, lengths)))
    worst, answers = 0.0, 0
    drawn, scored = asyncio.run(ask())
    if not all(1 <= len(ids) <= worker.max_tokens and max(ids) < model.config.vocab_size for ids in drawn):
        sys.exit("the worker's own completions: %s" % drawn)
    for (ids, values), sequence, begin in zip(scored, sequences, lengths):
        expected = reference(model, sequence)
        for at in range(begin, len(sequence)):
            if sequence[at] not in ids[at - begin] or len(ids[at - begin]) not in (8, 9):
                sys.exit("position %d: %s, own token %d" % (at, ids[at - begin], sequence[at]))
            worst = max(worst, check_position(expected[at], sequence, at, ids[at - begin], values[at - begin]))
            answers += 1
    return {"client": "AsyncDistillation _score_with_teacher", "positions": answers, "largest_difference": worst}


def trainer(url, folder, student):
    """ServerDistillationTrainer on its own: it samples from the student and learns from what the server says of the samples."""
    import trl.generation.vllm_client as code
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = Dataset.from_list([{"prompt": text} for text in ("the cat", "in the garden", "and then", "on and on the") * 8])
    losses = []
    for beta, top_k in ((0.0, 32), (1.0, 1)):
        arguments = ServerDistillationConfig(
            output_dir=str(folder / "trl"), teacher_model_server_url=url, beta=beta, loss_top_k=top_k, max_steps=12,
            per_device_train_batch_size=8, gradient_accumulation_steps=1, learning_rate=5e-3, max_completion_length=24, logging_steps=1,
            save_strategy="no", report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
            lr_scheduler_type="constant", disable_tqdm=True)
        with mock.patch.object(code, "is_vllm_available", return_value=True):
            made = ServerDistillationTrainer(model=AutoModelForCausalLM.from_pretrained(student), args=arguments, train_dataset=prompts,
                                             processing_class=tokenizer)
        made.train()
        losses.append({"beta": beta, "loss_top_k": top_k, "losses": [round(e["loss"], 4) for e in made.state.log_history if "loss" in e]})
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="a GGUF file whose weights both sides read, as f32 (part 3 is then left out)")
    parser.add_argument("--build", default=os.environ.get("top_builddir", os.getcwd()))
    parser.add_argument("--venv")
    parser.add_argument("--json", help="write the figures here")
    a = parser.parse_args()
    peer.need(PACKAGES, a.venv)
    os.environ.update(top_builddir=os.path.abspath(a.build), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="",
                      TRL_EXPERIMENTAL_SILENCE="1")
    import torch
    from transformers import AutoModelForCausalLM
    from kdserved import Daemon
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        directory = peer.model_directory(folder / "model", a.gguf)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        rng = torch.Generator().manual_seed(1)
        sequences = [torch.randint(model.config.vocab_size, (n,), generator=rng).tolist() for n in (5, 17, 2, 40, 64, 31)]
        lengths = [2, 9, 1, 30, 1, 30]
        with Daemon(model=str(directory), patience=600) as daemon:
            url = "http://127.0.0.1:%d" % daemon.port
            figures = [sync_client(url, model, sequences, lengths), async_client(url, model, sequences, lengths)]
            for f in figures:
                print("%-40s %5d positions, largest difference %.2e" % tuple(f.values()), flush=True)
            runs = []
            if a.gguf is None:
                import tiny_model
                student = folder / "student"
                tiny_model.write(str(student), seed=2)
                (student / "tokenizer_config.json").write_text((directory / "tokenizer_config.json").read_text())
                runs = trainer(url, folder, student)
                for run in runs:
                    print("ServerDistillationTrainer beta %(beta)g, loss_top_k %(loss_top_k)d: losses %(losses)s" % run)
    if a.json:
        Path(a.json).write_text(json.dumps({"clients": figures, "trainer": runs}))
    falls = all(sum(r["losses"][-3:]) < sum(r["losses"][:3]) for r in runs if r["beta"] == 0)    # one sample of reverse KL is too noisy
    print("limit %g" % TOLERANCE, "" if falls else "; A LOSS DOES NOT FALL")
    return any(f["largest_difference"] > TOLERANCE for f in figures) or not falls


if __name__ == "__main__":
    sys.exit(main())
