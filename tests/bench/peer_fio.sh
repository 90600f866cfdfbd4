#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The store's writer against fio on the same directory: peer_fio.sh DIRECTORY [ROUNDS [MEGABYTES]]. Runs the two in turn, block size and
# durability alike (O_DIRECT writes of 4 MiB one at a time; durable: an fsync for every 32 MiB; flushed: none but the last), and prints
# one CSV row per durability: medians of store and fio, median of the ratios of neighbours (which a busy machine disturbs least) and their
# range. Also fio over queue depths, for the record. FIO names the program.
set -euo pipefail
dir=${1:?usage: peer_fio.sh DIRECTORY [ROUNDS [MEGABYTES]]}; rounds=${2:-5}; megabytes=${3:-768}
fio=${FIO:-fio}
bench=${top_builddir:-.}/tests/bench/bench_store
work=$(mktemp -d "$dir/peer-fio-XXXXXX")
trap 'rm -rf "$work"' EXIT
command -v "$fio" >/dev/null || { echo "no fio: set FIO" >&2; exit 77; }

# MB/s of one run: its bytes over its time, the last fsync included.
run_fio() {    # DEPTH FSYNC-EVERY
	rm -f "$work/f"
	"$fio" --name=w --filename="$work/f" --rw=write --bs=4M --direct=1 --ioengine=io_uring --fixedbufs=1 --registerfiles=1 --iodepth="$1" \
		--fsync="$2" --end_fsync=1 --fallocate=native --size="${megabytes}M" --output-format=json |
		python3 -c 'import json, sys; j = json.load(sys.stdin)["jobs"][0]; print(round(j["write"]["io_bytes"] / j["job_runtime"] / 1e3))'
	rm -f "$work/f"
}
coproc STORE { exec "$bench" "$work" 512 64 $((megabytes * 1000 / 181)) asked; }
read -r line <&"${STORE[0]}"         # its records are made
run_store() {
	local line
	echo "$1" >&"${STORE[1]}"
	read -r line <&"${STORE[0]}"
	cut -d, -f7 <<<"$line"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

echo "durability,store_MB/s,fio_MB/s,ratio,lowest,highest,rounds,load"
for durability in flushed durable; do
	every=0; [ $durability = flushed ] || every=8
	: >"$work/store"; : >"$work/fio"
	for ((i = 0; i < rounds; i++)); do
		run_store $durability >>"$work/store"
		run_fio 1 $every >>"$work/fio"
	done
	ratios=$(paste "$work/store" "$work/fio" | awk '{ printf "%.2f\n", $1 / $2 }' | sort -n)
	echo "$durability,$(median <"$work/store"),$(median <"$work/fio"),$(median <<<"$ratios"),$(head -1 <<<"$ratios"),$(tail -1 <<<"$ratios"),\
$rounds,$(cut -d' ' -f1 /proc/loadavg)"
done
eval "exec ${STORE[1]}>&-"
for depth in 1 2 4 8; do
	echo "fio_depth_$depth,,$(for ((i = 0; i < rounds; i++)); do run_fio $depth 0; done | median)"
done
