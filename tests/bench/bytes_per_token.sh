#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What a teacher's row costs to keep, and what of it is lost: plain top-k, DistillKit's layouts and kdserved's records on real rows of a
# teacher. The truth are dense rows; the student is the same teacher reading no more than the last 16 tokens. Writes a CSV.
# usage: bytes_per_token.sh BUILD_FOLDER TEXT OUTPUT.csv [BYTES=14000] [SEED=1]
# TEXT: a file of prose (prose.py), of which BYTES from byte 200000 on are scored. Needs 0.4 MB of disk for a token, for a while.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '5,6p' "$0"; exit 2; }
build=$(cd "$1" && pwd) text=$2 csv=$3 bytes=${4:-14000} seed=${5:-1}
teacher=${KDSERVED_TEACHER:-${XDG_CACHE_HOME:-$HOME/.cache}/kdserved/SmolLM2-135M-Instruct.Q4_1.gguf}
work=$(mktemp -d)
trap 'kill "${daemon:-}" 2>/dev/null || true; rm -r "$work"' EXIT
head -c $((200000 + bytes)) "$text" | tail -c "$bytes" | iconv -c -f UTF-8 -t UTF-8 >"$work/prose.txt"
"$build/kdserved" --teacher "$teacher" --device cpu --threads "${THREADS:-1}" --http '' --socket "unix:$work/socket" --max-body 1G 2>"$work/log" &
daemon=$!
for ((i = 0; i < 600; i++)); do
	"$build/kdctl" --server "unix:$work/socket" model >/dev/null 2>&1 && break
	sleep 0.1
done
for length in 128 16; do
	"$build/kdctl" --server "unix:$work/socket" score --length $length --top-k 0 --no-own --dense --values f32 --batch 1 --in-flight 2 \
		--records "$work/$length" "$work/prose.txt" >/dev/null
done
kill "$daemon"
"$build/tests/bench/bytes_per_token" "$work/128" "$work/16" "$seed" >"$csv"
