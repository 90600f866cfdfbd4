#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""students.py RUNS OUTPUT: what students.sh measured: OUTPUT.csv, OUTPUT.svg (held-out KL over steps, the first seed of each method), and the
table on stdout. Held-out numbers are at temperature 1: KL from teacher to student over the teacher's 64 likeliest ids and one bucket for the rest."""
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


def evaluations(reports):
    """[(step, KL)], a point where it changed"""
    points = [(0, reports[-1]["held_out_kl_before"])]
    for report in reports:
        if "held_out_kl" in report and report["held_out_kl"] != points[-1][1]:
            points.append((report["step"], report["held_out_kl"]))
    return points


def ticks(least, most):
    """values of 1, 2 and 5 times a power of ten between the two"""
    found = [m * 10 ** e for e in range(-4, 5) for m in (1, 2, 5)]
    return [v for v in found if least <= v <= most] or [least, most]


def draw(runs, path):
    curves = {}
    for method, _, reports in runs:
        curves.setdefault(method, evaluations(reports))
    values = [kl for points in curves.values() for _, kl in points]
    least, most, last = min(values) * 0.95, max(values) * 1.05, max(points[-1][0] for points in curves.values())

    def place(step, kl):
        return (LEFT + step / last * (WIDTH - LEFT - RIGHT),
                TOP + (math.log(most) - math.log(kl)) / (math.log(most) - math.log(least)) * (HEIGHT - TOP - BOTTOM))
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">' % (WIDTH, HEIGHT),
           '<rect width="100%" height="100%" fill="white"/>']
    for value in ticks(least, most):
        y = place(0, value)[1]
        out.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>'
                   % (LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, value))
    for i in range(5):
        x = place(last * i / 4, least)[0]
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%d</text>' % (x, HEIGHT - BOTTOM + 18, last * i // 4))
    ends = sorted(curves, key=lambda method: -curves[method][-1][1])
    for i, method in enumerate(ends):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join("%.1f,%.1f" % place(*point) for point in curves[method])
        y = TOP + 16 * i + 12
        out.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>' % (line, colour))
        out.append('<text x="%d" y="%d" fill="%s">%s %.3f</text>' % (WIDTH - RIGHT + 8, y, colour, method, curves[method][-1][1]))
    out.append('<text x="%d" y="%d" text-anchor="middle">optimizer steps</text>' % ((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 8))
    out.append('<text transform="translate(14 %d) rotate(-90)" text-anchor="middle">held-out KL to the teacher, nats (log)</text></svg>' % (HEIGHT // 2))
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    runs = read_runs(sys.argv[1])
    write_table(runs, sys.argv[2] + ".csv")
    draw(runs, sys.argv[2] + ".svg")


if __name__ == "__main__":
    main()
