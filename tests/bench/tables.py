#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts the figures of tests/bench/results into docs/performance.md and README.md: tables.py [--check [DIRECTORY]]. What stands between
"<!-- table NAME -->" and "<!-- end of table -->" is made from the CSV files alone, so no figure in a document is one that nobody measured.
--check changes nothing and exits with 1 where a document says something else than the results. DIRECTORY: of the source."""
import csv
import os
import re
import statistics
import sys

DOCUMENTS = ("docs/performance.md", "README.md")
MARK = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end of table -->)", re.S)


class Results:
    """One CSV file: lines "# key: value" say where it comes from; a line whose first words are column names begins a table."""

    def __init__(self, directory, name):
        self.name, self.facts, self.lines, self.command = name, {}, [], "make bench BENCH_PARTS=%s" % name
        path = os.path.join(directory, "tests/bench/results", name + ".csv")
        self.there = os.path.exists(path)
        if not self.there:
            return
        with open(path, encoding="utf-8") as f:
            for line in f:
                fact = re.match(r"# (machine|commit|date|load|threads): (.*)", line)
                if fact:
                    self.facts[fact.group(1)] = fact.group(2)
                elif line.startswith("# make bench"):
                    self.command = line[2:].strip()
                elif line.strip() and not line.startswith("#"):
                    self.lines.append(next(csv.reader([line])))

    def rows(self, first=None):
        """The rows as dictionaries. first: of a file with several tables, the one whose first column has that name (and, in each row, that
        word)."""
        lines = [line for line in self.lines if first is None or line[0] == first]
        return [dict(zip(lines[0], line)) for line in lines[1:] if line != lines[0]] if lines else []

    def source(self):
        told = ["%s %s" % (key, self.facts[key]) for key in ("commit", "date", "threads", "load") if key in self.facts]
        where = "; ".join(([self.facts["machine"]] if "machine" in self.facts else ["an earlier machine"]) + told)
        return "`%s`; %s ([%s.csv](RESULTS/%s.csv))" % (self.command, where, self.name, self.name)


def number(text):
    try:
        return float(text)
    except ValueError:
        return None


def show(value):
    """Four digits, as one would write them."""
    if value is None or isinstance(value, str):
        return value or ""
    if abs(value) >= 1000:
        return "%.0f" % value
    return "%.4g" % value


def grouped(rows, keys):
    """{values of the keys: rows}, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    return groups


def middle(rows, column):
    values = [v for v in (number(row.get(column, "")) for row in rows) if v is not None]
    return statistics.median(values) if values else None


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return lines + ["| " + " | ".join(show(v) for v in row) + " |" for row in rows]


# ---- one function a table: results -> lines

def score(r):
    groups = grouped(r.rows(), ("length", "sequences", "engine"))
    rows = []
    for (length, sequences, engine), of in groups.items():
        base = middle(groups.get((length, sequences, "llama.cpp-BF16"), []), "median_tokens_s")
        mine = middle(of, "median_tokens_s")
        rows.append([engine, "%s x %s" % (sequences, length), float(len(of)), mine, max(number(row["best_tokens_s"]) for row in of),
                     mine / base if base else "not measured"])
    return table(["engine", "tokens", "processes", "median tokens/s", "best", "to llama.cpp BF16"], rows)


def epilogue(r):
    rows = []
    for (full, top_k), of in grouped(r.rows(), ("full", "top_k")).items():
        seconds = [number(row["head_seconds"]) - number(row["product_seconds"]) for row in of]
        us = [1e6 * s / (number(row["sequences"]) * number(row["length"])) for s, row in zip(seconds, of)]
        percent = [100 * s / number(row["seconds"]) for s, row in zip(seconds, of)]
        rows.append(["top-%s, %s" % (top_k, "two temperatures, own token, entropy" if full == "1" else "one temperature"), float(len(of)),
                     statistics.median(us), statistics.median(percent), min(percent), max(percent)])
    return table(["what is read from the logits", "processes", "us a row", "% of a pass", "least", "most"], rows)


def ops(r):
    rows = r.rows()
    whole = [["%s, all of it, %s" % (row["chain"], row["tokens"]), number(row["median_tokens_s"]), None, 100.0, None,
              number(row["peak_percent"])] for row in rows if row["operation"] == "all"]
    parts = [["%s: %s" % (row["chain"], row["operation"]), None, number(row["ms_a_pass"]), number(row["share_percent"]),
              number(row["gflop_s"]), number(row["peak_percent"])]
             for row in rows if row["operation"] != "all" and row["tokens"] == rows[0]["tokens"] and (number(row["share_percent"]) or 0) >= 1]
    return table(["what", "tokens/s", "ms a pass", "% of time", "GFLOP/s", "% of peak"], whole + parts)


def plan(r):
    rows = []
    for (kind, length, figure), of in grouped(r.rows(), ("kind", "length", "figure")).items():
        unit = 2 ** 20 if figure == "memory" else 1
        rows.append([kind, "memory, MiB" if figure == "memory" else "%s, %s tokens" % (figure, length), middle(of, "predicted") / unit,
                     middle(of, "measured") / unit, "%+.0f %%" % (100 * middle(of, "error"))])
    return table(["products", "figure", "predicted", "measured", "error"], rows)


def train(r):
    groups = grouped([row for row in r.rows() if row["date"] != "date"], ("threads", "loss", "precision", "engine"))
    rows = []
    for (threads, loss, precision, engine), of in groups.items():
        torch = [row for key, more in groups.items() if key[:3] == (threads, loss, precision) and key[3].startswith("torch") for row in more]
        mine, theirs = middle(of, "tokens_s"), middle(torch, "tokens_s")
        rows.append([engine, loss, precision, threads, float(len(of)), mine, middle(of, "tokens_processor_s"), middle(of, "peak_mib"),
                     mine / theirs if theirs else "not measured"])
    return table(["engine", "loss", "format", "threads", "processes", "tokens/s", "tokens per processor second", "peak MiB", "to PyTorch"], rows)


def doors(r):
    return table(["request that asks for nothing", "connections", "requests/s", "p50 us", "p99 us", "server us a request"],
                 [[row["kind"], row["connections"], number(row["requests_s"]), number(row["p50_us"]), number(row["p99_us"]),
                   number(row["server_us_a_request"])] for row in r.rows("empty")])


def overhead(r):
    return table(["512 tokens, top-64, by", "requests", "engine ms", "other threads ms", "not the engine"],
                 [[row["door"], row["requests"], number(row["engine_ms_a_request"]), number(row["other_ms_a_request"]), row["other_share"]]
                  for row in r.rows("share")])


def storing(r):
    rounds = [row for row in r.rows() if row["round"] != "median"]
    return table(["rounds", "tokens/s storing", "without", "median of the ratios"],
                 [[str(len(rounds)), middle(rounds, "storing_tokens/s"), middle(rounds, "without_tokens/s"), middle(rounds, "ratio")]])


def columns(*names):
    def make(r):
        return table([head for head, _ in names], [[number(row.get(column, "")) if number(row.get(column, "")) is not None else
                                                    row.get(column, "") for _, column in names] for row in r.rows()])
    return make


def figures(r):
    """Of files without a head: name, value, unit, and more of the like."""
    return table(["figure", "value", "", "and", ""], [(line + [""] * 5)[:5] for line in r.lines])


KEPT = (("plain-64", "plain top-64: fp16 value, 16-bit id"), ("distillkit-budget", "DistillKit, budget (top-50)"),
        ("distillkit-recommended", "DistillKit, recommended (top-128)"), ("record-50-u8", "record, top-50 u8"),
        ("record-64-u8", "record, top-64 u8"), ("record-64-f16", "record, top-64 f16"), ("record-128-u8", "record, top-128 u8"),
        ("rskd-50-24bit", "50 draws, 3 bytes each distinct id (as published)"),
        ("record-draws-50", "record, 50 draws (2.05 bytes each distinct id)"),
        ("record-16-u8-tail-32", "record, top-16 u8 and 32 draws of the rest"))


def kept(r):
    rows = {row["layout"]: row for row in r.rows()}
    return table(["kept", "bytes", "of plain", "KL", "off by"],
                 [[name, "%.0f" % number(rows[key]["bytes_per_position"]), "%.2f" % number(rows[key]["of_plain"]) if rows[key]["of_plain"] else "",
                   "%.3f" % number(rows[key]["kl"]), "%.3f" % number(rows[key]["mean_abs_error"])] for key, name in KEPT])


def queued(r):
    rows, lines = r.rows(), []
    for n in sorted({int(row["queued"]) for row in rows}):
        mine = [row for row in rows if int(row["queued"]) == n]
        lines.append([str(n), mine[0]["tokens"]] + [show(statistics.median(number(row[key]) for row in mine))
                                                    for key in ("tokens_s", "tokens_cpu_s", "bytes_per_queued_token")])
    return table(["sequences that wait at once", "tokens a round", "tokens/s", "tokens per processor second", "bytes more for each that waits"], lines)


def streamed(r):
    return table(["tokens", "matrices, MiB", "memory at most, MiB", "peak, MiB", "tokens/s in memory", "streamed", "ratio", "of processor time",
                  "same bits"],
                 [[row["tokens"], row["matrices_mib"], row["cap_mib"], row["peak_mib"], number(row["resident_tokens_s"]),
                   number(row["streamed_tokens_s"]), number(row["ratio"]), number(row["processor_ratio"]), "yes" if row["same_bits"] == "1" else "NO"]
                  for row in r.rows()])


def stored(r):
    rows = r.rows()
    return table(["passes", "tokens of each", "packed, MiB", "stored, MiB", "memory at most, MiB", "peak, MiB", "packed all, peak", "tokens/s packed",
                  "stored", "a pass takes times", "of processor time", "same bits"],
                 [[str(len(rows)), rows[0]["tokens"], rows[0]["packed_mib"], rows[0]["stored_mib"], rows[0]["cap_mib"], rows[-1]["peak_mib"],
                   rows[-1]["packed_peak_mib"], middle(rows, "packed_tokens_s"), middle(rows, "stored_tokens_s"), middle(rows, "ratio"),
                   middle(rows, "processor_ratio"), "yes" if all(row["same_bits"] == "1" for row in rows) else "NO"]])


TABLES = {
    "score": ("score", score),
    "numeric": ("numeric", columns(("form", "numeric"), ("positions", "positions"), ("KL, mean, nats", "kl_mean"), ("largest", "kl_max"),
                                   ("total variation", "total_variation"), ("same likeliest id", "same_top"),
                                   ("logit off by at most", "logit_max"), ("perplexity", "perplexity"), ("in f32", "perplexity_f32"))),
    "epilogue": ("epilogue", epilogue),
    "ops": ("ops", ops),
    "plan": ("plan", plan),
    "train": ("train", train),
    "queued": ("queued", queued),
    "streamed": ("streamed", streamed),
    "stored": ("stored", stored),
    "doors": ("server_overhead", doors),
    "overhead": ("server_overhead", overhead),
    "storing": ("storing", storing),
    "record": ("record", columns(("values", "values"), ("top-k", "top_k"), ("bytes an entry", "bytes_per_entry"),
                                 ("encoded M/s", "encode_M_per_s"), ("decoded M/s", "decode_M_per_s"), ("checked M/s", "check_M_per_s"))),
    "wire": ("wire", columns(("format", "format"), ("top-k", "top_k"), ("bytes a row", "bytes_per_row"), ("bytes an entry", "bytes_per_entry"),
                             ("encode us a row", "encode_us_per_row"), ("decode us a row", "decode_us_per_row"))),
    "store": ("store", figures),
    "fio": ("fio", columns(("durability", "durability"), ("store MB/s", "store_MB/s"), ("fio MB/s", "fio_MB/s"), ("ratio", "ratio"))),
    "verify": ("verify", columns(("values", "values"), ("MB", "MB"), ("MB/s, processor time in the program", "user_MB/s"),
                                 ("with the kernel's", "cpu_MB/s"), ("by the clock", "wall_MB/s"))),
    "recovery": ("recovery", figures),
    "scale_out": ("scale_out", columns(("one daemon, requests/s", "one_per_s"), ("two", "two_per_s"), ("ratio", "ratio"))),
    "kept": ("bytes_per_token", kept),
}


def make(directory, document, name):
    """The lines of one table, its source below it."""
    if name not in TABLES:
        raise SystemExit("tables.py: %s asks for a table %s, which nobody makes" % (document, name))
    file, lines_of = TABLES[name]
    results = Results(directory, file)
    if not results.there:
        return "Not measured: `%s`.\n" % results.command
    try:
        lines = lines_of(results)
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise SystemExit("tables.py: %s.csv: the table %s cannot be made: %r" % (file, name, e))
    to = os.path.relpath("tests/bench/results", os.path.dirname(document) or ".")
    return "\n".join(lines) + "\n\n" + results.source().replace("RESULTS", to) + "\n"


def main():
    check = sys.argv[1:2] == ["--check"]
    directory = (sys.argv[2:] if check else []) or [os.path.join(os.path.dirname(os.path.realpath(__file__)), "../..")]
    stale = []
    for document in DOCUMENTS:
        path = os.path.join(directory[0], document)
        with open(path, encoding="utf-8") as f:
            text = f.read()
        new = MARK.sub(lambda m: m.group(1) + make(directory[0], document, m.group(2)) + m.group(4), text)
        if new != text and check:
            stale.append(document)
        elif new != text:
            with open(path, "w", encoding="utf-8") as f:
                f.write(new)
    if stale:
        raise SystemExit("tables.py: %s: other figures than those of tests/bench/results: run tests/bench/tables.py" % ", ".join(stale))


if __name__ == "__main__":
    main()
