#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# train.sh WORKER PROSE OUTPUT: trains the small teacher again, from random numbers, with the program WORKER (kdserved-worker), on the novels
# that tests/bench/prose.py unpacks into the folder PROSE. "Persuasion" is not among them: it is what the teacher is judged by.
# The log of the run whose student stands here is metrics.jsonl, each fiftieth step of it.
set -euo pipefail
[ $# = 3 ] || { sed -n '3,5s/^# //p' "$0" >&2; exit 2; }
here=$(realpath "$(dirname "$0")") prose=$(realpath "$2")
mkdir -p "$3"
{
	sed "s|^tokenizer = .*|tokenizer = $here/tokenizer.json|" "$here/../recipes/from-scratch.conf" | grep -v '^corpus = '
	for novel in emma mansfield-park northanger-abbey pride-and-prejudice sense-and-sensibility; do
		echo "corpus = $prose/$novel.txt"
	done
} >"$3/run.conf"
exec "$1" --config "$3/run.conf" --output "$3"
