#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# All figures that need no GPU, one part after the other: make bench, or bench.sh BUILD_FOLDER. Each part writes BENCH_RESULTS/PART.csv, the
# columns of its script behind lines that say where, when and from which commit; a part that fails or is skipped leaves the file of an earlier
# run alone and stops no other. Then the tables of docs/performance.md and README.md are made anew (tables.py).
#   BENCH_SHORT=1      a few minutes, few rounds, instead of an hour and medians worth quoting
#   BENCH_PARTS=LIST   only these
#   BENCH_THREADS      [all processors]
#   BENCH_TEACHER      model file [the quick start's]            BENCH_TEXT    a file of prose [the quick start's]
#   BENCH_LLAMACPP     work folder of peer_llamacpp.sh           BENCH_PYTHON  an interpreter with torch
#   BENCH_KINDS        llama.cpp's [BF16, its quickest; F32, file: the teacher's own]
#   BENCH_LIMIT        seconds of a part, which has failed then [300, 7200]
#   BENCH_DIRECTORY    where stores are written [BUILD_FOLDER]   BENCH_RESULTS [tests/bench/results]
# Exit status 1 when a part failed.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '3,14s/^# //p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd) build=$(cd "$1" && pwd) top=$(cd "$(dirname "$0")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kdserved
short=${BENCH_SHORT:-} threads=${BENCH_THREADS:-$(nproc)}
teacher=${BENCH_TEACHER:-$cache/SmolLM2-135M-Instruct.Q4_1.gguf} text=${BENCH_TEXT:-$cache/prose/persuasion.txt}
results=${BENCH_RESULTS:-$here/results}
export KDSERVED_TEACHER=$teacher THREADS=$threads top_builddir=$build top_srcdir=$top PYTHONDONTWRITEBYTECODE=1
[ "$short" != 0 ] || short=
parts="score epilogue numeric ops plan train queued server_overhead storing record wire store verify recovery scale_out fio bytes_per_token streamed stored"

pick() { if [ -n "$short" ]; then echo "$1"; else echo "$2"; fi; }         # SHORT WHOLE
skip() { echo "$*" >&2; exit 77; }
need() { # FILE VARIABLE
	[ -e "$1" ] || skip "no $1: set $2"
}

# ---- the parts: each prints CSV

part_score() {
	need "$teacher" BENCH_TEACHER
	local work=${BENCH_LLAMACPP:--} length
	[ "$work" != - ] || echo "# without llama.cpp: BENCH_LLAMACPP is not set"
	export PASSES CSV=/dev/null HEADER=1 NUMERICS="auto int8" KINDS TORCH=${BENCH_PYTHON:-}
	PASSES=$(pick 2 3)
	KINDS=${BENCH_KINDS:-BF16}
	for length in $(pick 512 "512 2048"); do
		bash "$here/peer_llamacpp.sh" "$build" "$work" "$(pick 2 $((length == 512 ? 8 : 4)))" "$threads" "$length" \
			"$(pick 2 $((2048 / length)))" || return
		HEADER=
	done
}
part_epilogue() {
	need "$teacher" BENCH_TEACHER
	local i full from=1
	for ((i = 0; i < $(pick 2 8); i++)); do
		for full in "" --full; do
			# shellcheck disable=SC2086
			"$build/tests/bench/bench_score" --teacher "$teacher" --device cpu --threads "$threads" --sequences 2 \
				--passes "$(pick 2 7)" $full | tail -n +$from || return
			from=2
		done
	done
}
part_numeric() {
	need "$teacher" BENCH_TEACHER; need "$text" BENCH_TEXT
	"$build/tests/bench/bench_numeric" "$teacher" "$text" "$(pick 2048 8192)" 512 "$threads"
}
part_ops() {
	bash "$here/ops.sh" "$build" "$(pick 2 4)" 512 "$(pick 2 5)" "$threads" &&
		bash "$here/ops.sh" "$build" 1 2048 "$(pick 2 5)" "$threads"
}
part_plan() {
	need "$teacher" BENCH_TEACHER
	python3 "$here/plan.py" "$build" "$teacher" "$(pick 1 5)"
}
part_train() {
	[ -n "${BENCH_PYTHON:-}" ] || skip "no PyTorch: set BENCH_PYTHON"
	bash "$here/train_throughput.sh" "$build" "$BENCH_PYTHON" "$(pick 2 4)" "$threads" "$(pick 1 3)"
}
part_queued() {
	need "$teacher" BENCH_TEACHER
	python3 "$here/queued.py" "$build" "$teacher" "$(pick 1 3)" "$(pick 16 128)"
}
part_server_overhead() {
	need "$teacher" BENCH_TEACHER
	python3 "$here/server_overhead.py" "$build" "$teacher" "$(pick 6 32)" "$(pick 2 5)"
}
part_storing() {
	need "$teacher" BENCH_TEACHER
	(cd "$build" && PYTHONPATH=$top/tests/e2e python3 "$here/storing.py" "$teacher" "$directory" "$(pick 4 12)")
}
part_record() { "$build/tests/bench/bench_record"; }
part_wire() { "$build/tests/bench/bench_wire"; }
part_store() { "$build/tests/bench/bench_store" "$directory"; }
part_verify() {
	need "$teacher" BENCH_TEACHER; need "$text" BENCH_TEXT
	bash "$here/verify.sh" "$build" "$text" "$directory" 14000 "$(pick 64 256)" "$(pick 3 5)"
}
part_recovery() {
	need "$teacher" BENCH_TEACHER
	TEACHER=$teacher ROUNDS=$(pick 1 3) bash "$here/recovery.sh" "$directory" "$(pick 500 10738)"
}
part_scale_out() {
	need "$teacher" BENCH_TEACHER
	(cd "$build" && bash "$here/scale_out.sh" "$teacher" "$(pick 2 5)" "$(pick 5 10)" | sed 's/^\(median\|load\|SKIP\)/# &/')
}
part_fio() { bash "$here/peer_fio.sh" "$directory" "$(pick 2 5)" "$(pick 256 768)"; }
part_bytes_per_token() {
	[ -z "$short" ] || skip "the whole only: its figures are no times, and README.md quotes them"
	need "$teacher" BENCH_TEACHER; need "$text" BENCH_TEXT
	bash "$here/bytes_per_token.sh" "$build" "$text" "$directory/csv" >&2 && cat "$directory/csv"
}
part_streamed() {
	[ -z "$short" ] || skip "the whole only: it makes a model of 2.3 GiB"
	TMPDIR=$directory bash "$here/streamed.sh" 3
}

part_stored() {
	need "$teacher" BENCH_TEACHER
	TMPDIR=$directory bash "$here/stored.sh" "$teacher" "$(pick 3 9)"
}

if [ "${2:-}" = --part ]; then
	directory=$4
	"part_$3"
	exit
fi

# ---- all of them

work=$(mktemp -d "${BENCH_DIRECTORY:-$build}/bench-XXXXXX")
child=
trap 'rm -rf "$work"' EXIT
trap '[ -z "$child" ] || kill "$child"; exit 130' INT TERM         # timeout passes it on to all that the part started
mkdir -p "$results"
failed='' began=$SECONDS
changed=$(git -C "$top" status --porcelain --untracked-files=no -- . ':!tests/bench/results' ':!docs' ':!README.md' 2>/dev/null)
commit=$(git -C "$top" rev-parse --short HEAD 2>/dev/null || echo unknown)${changed:++}
machine=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
for isa in avx2 avx512f avx512_vnni avx512_bf16; do ! grep -qw "$isa" /proc/cpuinfo || best=$isa; done
machine="${machine:-unknown processor}, $(nproc) processors${best:+, $best}, $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)"

# One part: its file appears whole or not at all.
run() {
	local name=$1 load limit seconds=$SECONDS status
	load=$(cut -d' ' -f1 /proc/loadavg) limit=${BENCH_LIMIT:-$(pick 300 7200)}
	mkdir "$work/$name"
	timeout -k 10 "$limit" bash "$here/bench.sh" "$build" --part "$name" "$work/$name" >"$work/$name.csv" 2>"$work/$name.log" &
	child=$!
	wait "$child"
	status=$? child=
	rm -rf "${work:?}/$name"
	case $status in
	0)
		{
			echo "# make bench BENCH_PARTS=$name${short:+ BENCH_SHORT=1}"
			echo "# machine: $machine"
			echo "# commit: $commit"
			echo "# date: $(date -u +%F)"
			echo "# load: $load before, $(cut -d' ' -f1 /proc/loadavg) after"
			echo "# threads: $threads"
			cat "$work/$name.csv"
		} >"$work/result" && mv "$work/result" "$results/$name.csv"
		echo "bench: $name: $((SECONDS - seconds)) s" ;;
	77) echo "bench: $name: skipped: $(cat "$work/$name.log" "$work/$name.csv" | tail -n 1)" ;;
	124 | 137) echo "bench: $name: FAILED: over its $limit s"; failed+=" $name" ;;
	*)
		echo "bench: $name: FAILED with status $status:"
		tail -n 5 "$work/$name.log" | sed 's/^/    /'
		failed+=" $name" ;;
	esac
}

for name in ${BENCH_PARTS:-$parts}; do
	case " $parts " in
	*" $name "*) run "$name" ;;
	*) echo "bench: $name: FAILED: no such part (there are: $parts)"; failed+=" $name" ;;
	esac
done
[ -n "${BENCH_RESULTS:-}" ] || python3 "$here/tables.py" || failed+=" tables"
echo "bench: $((SECONDS - began)) s in all${failed:+; FAILED:$failed}"
[ -z "$failed" ]
