#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Each operation's time in scoring and in a training step, as CSV: bench_ops' report with a column for each of its numbers.
# usage: ops.sh BUILD_FOLDER [SEQUENCES=4 [LENGTH=512 [PASSES=5 [THREADS=0 [NUMERIC=auto]]]]]
set -euo pipefail
[ $# -ge 1 ] || { sed -n '4p' "$0"; exit 2; }
"$1/tests/bench/bench_ops" cpu "${5:-0}" "${2:-4}" "${3:-512}" "${4:-5}" "${6:-auto}" | awk -v tokens="${2:-4} x ${3:-512}" '
	BEGIN { OFS = ","; print "tokens,chain,operation,calls,ms_a_pass,share_percent,gflop_s,peak_percent,median_tokens_s,best_tokens_s" }
	NR == 1 { print "# " $0 }
	/^(scoring|training), .* tokens: median / {
		chain = substr($1, 1, index($1, ",") - 1)
		for (i = 1; i < NF; i++) {
			if ($i == "median") median = $(i + 1)
			if ($i == "best" && $(i + 1) != "pass") best = $(i + 1)
			if ($i == "pass") peak = $(i + 1)
		}
		print tokens, chain, "all", "", "", "100", "", peak, median, best
		print "# " chain ": " substr($0, index($0, "best pass") + 10)
	}
	chain && $2 ~ /^[0-9]+$/ { gsub("%", ""); print tokens, chain, $1, $2, $3, $4, $5, $6, "", ""; n++ }
	END { if (!n) exit 1 }'
