#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""students.py RUNS OUTPUT: what students.sh measured: OUTPUT.csv, OUTPUT.svg (held-out KL over steps: each seed, and their mean), and the
tables on stdout. Held-out numbers are at temperature 1: KL from teacher to student over the teacher's 64 likeliest ids and one bucket for the rest."""
import csv
import json
import math
import os
import sys

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")
NUMBERS = ("steps", "positions", "seconds", "held_out_kl_before", "held_out_kl", "held_out_perplexity", "held_out_agreement", "teacher_perplexity")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 60, 20, 150, 45


def read_runs(folder):
    """[(method, seed, reports)] in the order they were run"""
    paths = [os.path.join(folder, name, "metrics.jsonl") for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name))]
    runs = []
    for path in sorted(paths, key=os.path.getmtime):
        method, seed = os.path.basename(os.path.dirname(path)).rsplit("-", 1)
        with open(path, encoding="utf-8") as file:
            reports = [json.loads(line) for line in file]
        if reports[-1]["state"] != "succeeded":
            raise SystemExit("students.py: %s is not finished" % path)
        runs.append((method, seed, reports))
    return runs


def write_table(runs, path):
    rows = [[method, seed] + ["%.6g" % reports[-1][name] for name in NUMBERS] for method, seed, reports in runs]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["method", "seed", *NUMBERS], *rows])
    print("%-16s %4s %8s %10s %12s %10s" % ("method", "seed", "KL", "perplexity", "agreement %", "seconds"))
    for method, seed, reports in sorted(runs, key=lambda run: run[2][-1]["held_out_kl"]):
        last = reports[-1]
        print("%-16s %4s %8.4f %10.2f %12.2f %10.0f" % (method, seed, last["held_out_kl"], last["held_out_perplexity"],
                                                       100 * last["held_out_agreement"], last["seconds"]))


def write_means(runs):
    """a line a method: the mean over its seeds and, behind it, the least and the most"""
    print("%-16s %5s %24s %26s %24s" % ("method", "seeds", "KL", "perplexity", "agreement %"))
    methods = {}
    for method, _, reports in runs:
        methods.setdefault(method, []).append(reports[-1])
    for method, ends in sorted(methods.items(), key=lambda m: mean([e["held_out_kl"] for e in m[1]])):
        cells = []
        for name, scale, form in (("held_out_kl", 1, "%.3f"), ("held_out_perplexity", 1, "%.0f"), ("held_out_agreement", 100, "%.1f")):
            values = [scale * e[name] for e in ends]
            cells.append((form + " (" + form + " to " + form + ")") % (mean(values), min(values), max(values)))
        print("%-16s %5d %24s %26s %24s" % (method, len(ends), *cells))


def mean(values):
    return sum(values) / len(values)


def evaluations(reports):
    """[(step, KL)]: where it was evaluated"""
    last, every = reports[-1], max(1, reports[-1]["steps"] // 10)
    points = {r["step"]: r["held_out_kl"] for r in reports if "held_out_kl" in r and r["step"] and r["step"] % every == 0}
    return [(0, last["held_out_kl_before"]), *sorted({**points, last["step"]: last["held_out_kl"]}.items())]


def ticks(least, most):
    """values of 1, 1.5, 2, 3, 5 and 7 times a power of ten between the two"""
    found = [m * 10 ** e for e in range(-4, 5) for m in (1, 1.5, 2, 3, 5, 7)]
    return [v for v in found if least <= v <= most] or [least, most]


def spread(wanted, gap, most):
    """the heights wanted, rising, moved as little as keeps them a gap apart and within most"""
    placed = []
    for y in wanted:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], most if i + 1 == len(placed) else placed[i + 1] - gap)
    return placed


def draw(runs, path):
    curves = {}
    for method, _, reports in runs:
        curves.setdefault(method, []).append(evaluations(reports))
    values = [kl for seeds in curves.values() for points in seeds for _, kl in points]
    least, most, last = min(values) * 0.95, max(values) * 1.05, max(points[-1][0] for seeds in curves.values() for points in seeds)

    def place(step, kl):
        return (LEFT + step / last * (WIDTH - LEFT - RIGHT),
                TOP + (math.log(most) - math.log(kl)) / (math.log(most) - math.log(least)) * (HEIGHT - TOP - BOTTOM))

    def line(points, colour, style):
        return '<polyline points="%s" fill="none" stroke="%s" %s/>' % (" ".join("%.1f,%.1f" % place(*p) for p in points), colour, style)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">' % (WIDTH, HEIGHT),
           '<rect width="100%" height="100%" fill="white"/>']
    for value in ticks(least, most):
        y = place(0, value)[1]
        out.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>'
                   % (LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, value))
    for i in range(5):
        x = place(last * i / 4, least)[0]
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%d</text>' % (x, HEIGHT - BOTTOM + 18, last * i // 4))
    means = {method: [(points[0][0], mean([kl for _, kl in points])) for points in zip(*seeds)] for method, seeds in curves.items()}
    ends = sorted(means, key=lambda method: -means[method][-1][1])
    heights = spread([place(*means[method][-1])[1] + 4 for method in ends], 15, HEIGHT - BOTTOM)
    for colour, method, y in zip(COLOURS, ends, heights):
        out += [line(points, colour, 'stroke-width="1" stroke-opacity="0.4"') for points in curves[method]]
        out.append(line(means[method], colour, 'stroke-width="2.5"'))
        out.append('<text x="%d" y="%.1f" fill="%s">%s %.2f</text>' % (WIDTH - RIGHT + 8, y, colour, method, means[method][-1][1]))
    out.append('<text x="%d" y="%d" text-anchor="middle">optimizer steps</text>' % ((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 8))
    out.append('<text transform="translate(14 %d) rotate(-90)" text-anchor="middle">held-out KL to the teacher, nats (log)</text></svg>' % (HEIGHT // 2))
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    runs = read_runs(sys.argv[1])
    write_table(runs, sys.argv[2] + ".csv")
    write_means(runs)
    draw(runs, sys.argv[2] + ".svg")


if __name__ == "__main__":
    main()
