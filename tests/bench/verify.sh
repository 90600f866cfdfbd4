#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# How fast a store of real rows is verified: usage: verify.sh BUILD_FOLDER TEXT DIRECTORY [BYTES=14000 [MEGABYTES=256 [ROUNDS=5]]]
# TEXT: a file of prose (prose.py), of which BYTES from byte 200000 on are scored in each format of values (top-64, own), 512 tokens a
# record; a store is filled with copies of them in DIRECTORY and surveyed by one thread. CSV on stdout: MB of shards for a second of time.
# RECORDS=FOLDER keeps the scored records, and uses those that are there.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '3p' "$0"; exit 2; }
build=$(cd "$1" && pwd) text=$2 directory=$3 bytes=${4:-14000} megabytes=${5:-256} rounds=${6:-5}
teacher=${KDSERVED_TEACHER:-${XDG_CACHE_HOME:-$HOME/.cache}/kdserved/SmolLM2-135M-Instruct.Q4_1.gguf}
work=$(mktemp -d)
trap 'kill "${daemon:-}" 2>/dev/null || true; rm -r "$work"' EXIT
records=${RECORDS:-$work}
if [ ! -s "$records/u8" ]; then
	head -c $((200000 + bytes)) "$text" | tail -c "$bytes" | iconv -c -f UTF-8 -t UTF-8 >"$work/prose.txt"
	"$build/kdserved" --teacher "$teacher" --device cpu --threads "${THREADS:-1}" --http '' --socket "unix:$work/socket" 2>"$work/log" &
	daemon=$!
	for ((i = 0; i < 600; i++)); do
		"$build/kdctl" --server "unix:$work/socket" model >/dev/null 2>&1 && break
		sleep 0.1
	done
	for values in f32 f16 u8; do
		"$build/kdctl" --server "unix:$work/socket" score --length 512 --values $values --records "$records/$values" "$work/prose.txt" >/dev/null
	done
	kill "$daemon"
fi
echo "values,records,MB,user_MB/s,cpu_MB/s,wall_MB/s"
for values in f32 f16 u8; do
	echo "$values,$("$build/tests/bench/bench_verify" "$records/$values" "$directory" "$megabytes" "$rounds")"
done
