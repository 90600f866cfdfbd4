#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench.py BUNDLE OUT: kdserved's scoring pass on the GPU beside transformers on the same random weights, in the same run, and the bf16 matrix
rate of the card. One row of OUT/gpu-results.csv per figure, written as it is known: date, GPU, driver, shape, what, figure, unit. Stages that
are in the file already are not run again; each has a time limit, and stops of one do not lose the others. BENCH_SECONDS limits the whole."""
import csv
import datetime
import io
import os
import statistics
import subprocess
import sys
import time

bundle, out = sys.argv[1], sys.argv[2]
RESULTS = os.path.join(out, "gpu-results.csv")
MODELS = os.environ.get("BENCH_MODELS", "/tmp/kdserved-models")
END = time.monotonic() + float(os.environ.get("BENCH_SECONDS", "560"))
FIELDS = ["date", "gpu", "driver", "shape", "stage", "what", "figure", "unit"]
# layers, width, feed-forward, heads, kv heads, head size, vocabulary
SHAPES = {"8b": (32, 4096, 14336, 32, 8, 128, 128256), "1b": (16, 2048, 8192, 32, 8, 64, 128256)}


def machine():
    line = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout
    return [x.strip() for x in line.strip().splitlines()[0].split(",")]


def flop_per_token(shape, length, head=True):
    L, C, F, NH, NKV, D, V = SHAPES[shape]
    layer = 2 * (C * (NH + 2 * NKV) * D + NH * D * C + 3 * C * F) + 4 * NH * D * (length + 1) / 2
    return L * layer + (2 * C * V if head else 0)


def done_stages():
    if not os.path.exists(RESULTS):
        return set()
    with open(RESULTS) as f:
        return {r["stage"] for r in csv.DictReader(f)}


def write(shape, stage, rows):
    new = not os.path.exists(RESULTS)
    gpu, driver = machine()
    with open(RESULTS, "a") as f:
        w = csv.writer(f)
        if new:
            w.writerow(FIELDS)
        for what, figure, unit in rows:
            w.writerow([datetime.date.today().isoformat(), gpu, driver, shape, stage, what, f"{figure:.6g}", unit])
            print(f"{stage}: {what} = {figure:.6g} {unit}", flush=True)
        f.flush()
        os.fsync(f.fileno())


def median_ms(torch, f, n=7):
    for _ in range(2):
        f()
    times = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        f()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times)


def peak():
    import torch
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ms = median_ms(torch, lambda: a @ b, 15)
    x = torch.empty(1 << 30, device="cuda", dtype=torch.float32)
    y = torch.empty_like(x)
    copy = median_ms(torch, lambda: y.copy_(x), 9)
    return [("bf16 matrix rate, 8192^3, torch", 2 * 8192 ** 3 / ms / 1e9, "TFLOP/s"), ("copy, bytes read and written", 8 * 2 ** 30 / copy / 1e9, "TB/s")]


def rate_of_peak():
    with open(RESULTS) as f:
        for r in csv.DictReader(f):
            if r["what"].startswith("bf16 matrix rate"):
                return float(r["figure"])
    return float("nan")


def used_memory(pid):
    """MiB that the process holds on the GPU, context and libraries included; 0 while it holds none."""
    lines = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout
    return max([int(line.split(",")[1]) for line in lines.splitlines() if line.split(",")[0].strip() == str(pid)] + [0])


def bench_score(shape, length, sequences, k, full=False, watch=False, numeric="auto", gpu_mib=0):
    """One row of bench_score in a process of its own; watch adds peak_mib, the most it was seen to hold on the GPU."""
    command = [bundle + "/bin/bench_score", "--teacher", f"{MODELS}/{shape}", "--device", "cuda", "--length", str(length), "--sequences", str(sequences),
               "--top-k", str(k), "--passes", "7", "--numeric", numeric, "--gpu-memory", str(gpu_mib)] + (["--full"] if full else [])
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak_mib, end = 0, time.monotonic() + 200
    while p.poll() is None and time.monotonic() < end:      # its output is small: the pipes do not fill
        peak_mib = max(peak_mib, used_memory(p.pid) if watch else 0)
        time.sleep(0.05)
    if p.poll() is None:
        p.kill()
    output, errors = p.communicate()
    if p.returncode:
        raise RuntimeError(errors[-400:])
    return dict(next(csv.DictReader(io.StringIO(output))), peak_mib=peak_mib)


def epilogue(shape, length, sequences):
    """What reading k = 64, two temperatures, own and entropy from the logits costs, over the trunk and the head's product at every position."""
    r = bench_score(shape, length, sequences, 64, full=True)
    bare = float(r["seconds"]) - float(r["head_seconds"]) + float(r["product_seconds"])
    return [(f"epilogue {sequences}x{length} k=64, 2 temperatures, own, entropy", float(r["seconds"]) / bare - 1, "of the bare pass"),
            (f"epilogue {sequences}x{length} trunk alone", float(r["seconds"]) - float(r["head_seconds"]), "s"),
            (f"epilogue {sequences}x{length} product of the head alone", float(r["product_seconds"]), "s")]


def memory(shape):
    """The most memory held on the GPU for 8192 positions: k = 1 and 256, one sequence and 64."""
    rows = []
    for length, sequences, k in ((2048, 4, 1), (2048, 4, 256), (8192, 1, 64), (128, 64, 64)):
        r = bench_score(shape, length, sequences, k, watch=True)
        rows += [(f"memory {sequences}x{length} k={k} reserved", float(r["device_mib"]), "MiB"), (f"memory {sequences}x{length} k={k} peak", r["peak_mib"], "MiB")]
    return rows


def kdserved(shape, length, sequences):
    """The median pass, the share of it that the head (product and sweep) takes, and how long the weights took from the page cache to the device."""
    rows = []
    for k in (64, 256) if length == 2048 else (64,):
        r = bench_score(shape, length, sequences, k)
        tflops = float(r["tokens_per_s"]) * flop_per_token(shape, length) / 1e12
        rows += [(f"kdserved {sequences}x{length} k={k}", float(r["tokens_per_s"]), "tokens/s"), (f"kdserved {sequences}x{length} k={k} rate", tflops, "TFLOP/s"),
                 (f"kdserved {sequences}x{length} k={k} share of the matrix rate", tflops / rate_of_peak(), ""),
                 (f"kdserved {sequences}x{length} k={k} head, product and sweep", float(r["head_seconds"]) / float(r["seconds"]), "of the pass")]
        if k == 64:
            rows.append((f"kdserved load, {float(r['weights_mib']) / 1024:.2f} GiB", float(r["load_seconds"]) * 1024 / float(r["weights_mib"]), "s per GiB"))
    return rows


def fp8(shape, length, sequences):
    """The pass in fp8: to compare with kdserved's own in bf16, stage of the same name. Skipped by name where the card has none."""
    if int(subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True).stdout.split()[0].replace(".", "")) < 89:
        return [("fp8: none on this card", 0, "")]
    r, wide = bench_score(shape, length, sequences, 64, numeric="fp8"), bench_score(shape, length, sequences, 64, numeric="bf16")
    return [(f"kdserved fp8 {sequences}x{length} k=64", float(r["tokens_per_s"]), "tokens/s"),
            (f"kdserved fp8 {sequences}x{length} k=64 to bf16", float(r["tokens_per_s"]) / float(wide["tokens_per_s"]), ""),
            (f"kdserved fp8 {sequences}x{length} reserved", float(r["device_mib"]), "MiB"), (f"kdserved bf16 {sequences}x{length} reserved", float(wide["device_mib"]), "MiB")]


def stored(shape, length, sequences):
    """The same shape as a file of Q4_0: unpacked when it is loaded, and in less than half of the memory that takes, as the file has it."""
    subprocess.run([sys.executable, bundle + "/make_model.py", shape, f"{MODELS}/{shape}-q4", "q4_0"], check=True, timeout=200)
    wide = bench_score(f"{shape}-q4/model.gguf", length, sequences, 64)
    some = bench_score(f"{shape}-q4/model.gguf", length, sequences, 64, gpu_mib=int(0.45 * float(wide["device_mib"])))
    return [(f"kdserved Q4_0 unpacked {sequences}x{length} k=64", float(wide["tokens_per_s"]), "tokens/s"),
            (f"kdserved Q4_0 as stored {sequences}x{length} k=64 to unpacked", float(some["tokens_per_s"]) / float(wide["tokens_per_s"]), ""),
            (f"kdserved Q4_0 as stored, of {float(wide['weights_mib']):.0f} MiB", float(some["stored_mib"]), "MiB"),
            (f"kdserved Q4_0 unpacked {sequences}x{length} reserved", float(wide["device_mib"]), "MiB"),
            (f"kdserved Q4_0 as stored {sequences}x{length} reserved", float(some["device_mib"]), "MiB")]


def fp8_truth():
    """What fp8 costs in truth: the small teacher's rows in fp8 against those in bf16, on the card."""
    p = subprocess.run([bundle + "/bin/bench_numeric", bundle + "/small", bundle + "/small/persuasion.txt", "4096", "512", "0", "fp8", "cuda", "bf16"], capture_output=True,
                       text=True, timeout=100)
    if p.returncode:
        raise RuntimeError(p.stderr[-400:])
    r = next(csv.DictReader(io.StringIO(p.stdout)))
    return [("KL of fp8 to bf16, mean", float(r["kl_mean"]), "nats"), ("KL of fp8 to bf16, largest", float(r["kl_max"]), "nats"),
            ("same likeliest id in fp8 and bf16", float(r["same_top"]), "of the rows")]


def transformers(shape, length, sequences):
    """The same rows from transformers: bf16, SDPA, topk + logsumexp in chunks that fit."""
    import torch
    import transformers as hf
    dtype = {"dtype" if int(hf.__version__.split(".")[0]) >= 5 else "torch_dtype": torch.bfloat16}
    model = hf.AutoModelForCausalLM.from_pretrained(f"{MODELS}/{shape}", attn_implementation="sdpa", **dtype).cuda().eval()
    ids = torch.randint(0, 128256, (sequences, length), device="cuda")

    @torch.inference_mode()
    def score():
        hidden = model.model(ids, use_cache=False).last_hidden_state.view(-1, model.config.hidden_size)
        for part in hidden.split(1024):
            logits = model.lm_head(part).float()
            values, indices = logits.topk(64)
            both = [torch.logsumexp(logits / t, -1) for t in (1.0,)]
            values.cpu(), indices.cpu(), [x.cpu() for x in both]

    ms = median_ms(torch, score, 5)
    return [(f"transformers {sequences}x{length} k=64", sequences * length / ms * 1e3, "tokens/s")]


def training():
    p = subprocess.run([bundle + "/bin/bench_train", "cuda", "0", "20"], capture_output=True, text=True, timeout=120)
    if p.returncode:
        raise RuntimeError(p.stderr[-400:])
    r = next(csv.DictReader(io.StringIO(p.stdout)))
    return [("kdserved training step, 33 M student, 4x512, k=64", float(r["tokens_per_second"]), "tokens/s"), ("its optimizer", float(r["optimizer_ms"]), "ms")]


def torch_training():
    """The same student in transformers with torch.compile: bf16 autocast, cross-entropy and sparse distillation, fused AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=6, vocab_size=49152,
                         max_position_embeddings=512, tie_word_embeddings=True, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, 49152, (4, 512), device="cuda")
    top = torch.randint(0, 49152, (4, 512, 64), device="cuda")
    p = torch.softmax(torch.randn(4, 512, 64, device="cuda"), -1)

    def loss_of():
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(ids).logits
        log_p = torch.log_softmax(logits.float(), -1)
        return -(p * log_p.gather(-1, top)).sum(-1).mean() - 0.1 * log_p[:, :-1].gather(-1, ids[:, 1:, None]).mean()

    compiled = torch.compile(loss_of)

    def step():
        optimizer.zero_grad(set_to_none=True)
        compiled().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return [("torch.compile training step, 33 M student, 4x512, k=64", 4 * 512 / median_ms(torch, step, 11) * 1e3, "tokens/s")]


def make_model(shape):
    subprocess.run([sys.executable, bundle + "/make_model.py", shape, f"{MODELS}/{shape}"], check=True, timeout=200)


def main():
    os.makedirs(out, exist_ok=True)
    # What a short loan must bring home first: the 8B shape at 2048, what reading costs, the peer, memory; then the rest.
    def stage(f, shape, *args, seconds=120):
        name = " ".join([f.__name__, shape, *map(str, args[:1])])
        return name, shape, seconds, lambda: (make_model(shape), f(shape, *args))[1]

    stages = [("peak", "-", 40, peak), stage(kdserved, "8b", 2048, 4), stage(epilogue, "8b", 2048, 4), stage(transformers, "8b", 2048, 4),
              stage(fp8, "8b", 2048, 4), ("fp8 truth", "small", 60, fp8_truth), stage(stored, "8b", 2048, 4),
              stage(memory, "8b", seconds=150), ("training", "33m", 60, training), ("torch training", "33m", 120, torch_training)]
    stages += [stage(f, "8b", length, n) for length, n in ((512, 16), (8192, 1)) for f in (kdserved, transformers)]
    stages += [stage(f, "1b", length, n) for length, n in ((2048, 4), (512, 16), (8192, 1)) for f in (kdserved, transformers)]
    stages += [stage(epilogue, "1b", 2048, 4), stage(memory, "1b")]
    known, failed = done_stages(), 0
    for name, shape, seconds, run in stages:
        if name in known:
            continue
        if time.monotonic() + seconds / 2 > END:
            print(f"{name}: no time left; run again", flush=True)
            failed += 1
            continue
        try:
            write(shape, name, run())
        except Exception as e:      # one stage's failure is a line, not the end
            print(f"{name}: FAILED: {e!r}"[:600], flush=True)
            failed += 1
    return 1 if failed else 0


sys.exit(main())
