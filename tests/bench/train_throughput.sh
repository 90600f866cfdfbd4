#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Training throughput against PyTorch: the same student, batch, loss, precision and cores, processes in turn.
# usage: train_throughput.sh BUILD_FOLDER PYTHON [ROUNDS=4 [THREADS=2 [STEPS=3 [LOSSES="ce kd"]]]]
# PYTHON: an interpreter with torch. CSV on stdout, one row a process; on stderr the ratio of the medians of each kind. PyTorch is tuned:
# memory is never given back (else each large array would be mapped anew), and threads that wait do not spin.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '4p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd) python=$2 rounds=${3:-4} threads=${4:-2} steps=${5:-3} losses=${6:-ce kd}
precisions=f32
! grep -q avx512_bf16 /proc/cpuinfo || precisions="f32 bf16"
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
commit=$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo -)
rows=$(mktemp)
trap 'rm "$rows"' EXIT
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-0}
row() { # ENGINE LOSS PRECISION tokens/s best tokens/processor-s peak_mib
	local load token
	load=$(cut -d' ' -f1 /proc/loadavg) token=$(awk "BEGIN { printf \"%.0f\", $7 * 1024 / 2048 }")
	echo "$(date +%F),$commit,$cpu,$load,$threads,$steps,$1,$2,$3,$4,$5,$6,$7,$token" | tee -a "$rows"
}
echo "date,commit,cpu,load,threads,steps,engine,loss,precision,tokens_s,best_tokens_s,tokens_processor_s,peak_mib,peak_kib_a_token"
for ((i = 0; i < rounds; i++)); do
	for loss in $losses; do
		for precision in $precisions; do
			ours=$precision
			[ "$precision" = bf16 ] || ours=auto        # plain sums of floats, as PyTorch's are
			read -r a b c d < <("$build/tests/bench/bench_train" cpu "$threads" "$steps" 0 "$loss" "$ours" | tail -1 |
				sed 's/^"[^"]*",//' | awk -F, '{ print $5, $6, $10, $9 }')
			row kdserved "$loss" "$precision" "$a" "$b" "$c" "$d"
			IFS=, read -r a b c d version < <(MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=34359738368 \
				MALLOC_TOP_PAD_=67108864 "$python" "$here/peer_torch_train.py" "$loss" "$precision" "$threads" "$steps")
			row "torch $version" "$loss" "$precision" "$a" "$b" "$c" "$d"
		done
	done
done
median() { # COLUMN ENGINE LOSS PRECISION
	awk -F, -v e="$2" -v l="$3" -v p="$4" -v c="$1" 'index($7, e) == 1 && $8 == l && $9 == p { print $c }' "$rows" | sort -n |
		awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int((NR + 2) / 2)]) / 2 }'
}
for loss in $losses; do
	for precision in $precisions; do
		for column in 10:clock 12:processor; do
			ours=$(median "${column%:*}" kdserved "$loss" "$precision") theirs=$(median "${column%:*}" torch "$loss" "$precision")
			echo "$loss $precision, by the ${column#*:}: $ours / $theirs = $(awk "BEGIN { printf \"%.2f\", $ours / $theirs }")" >&2
		done
	done
done
