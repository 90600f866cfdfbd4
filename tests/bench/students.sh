#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# students.sh BUILD TEACHER TEXT OUTPUT [STEPS [SEEDS]]: the same small student, trained by several methods on the same text for the same
# number of steps [200] from the same random numbers, for each seed [1]. What the teacher says of the text is captured once; the on-policy run asks
# it live. Prints a table and leaves students.csv and students.svg (held-out KL over steps) in OUTPUT, which is kept: what is done is not redone.
#   BUILD    build folder with kdserved, kdctl and kdserved-worker
#   TEXT     a UTF-8 text; its first 260,000 bytes are taken
set -euo pipefail
[ $# -ge 4 ] || { sed -n '3,7s/^# //p' "$0" >&2; exit 2; }
build=$(realpath "$1") teacher=$(realpath "$2") text=$(realpath "$3") steps=${5:-200} seeds=${6:-1}
here=$(realpath "$(dirname "$0")")
mkdir -p "$4"
cd "$4"
head -c 260000 "$text" >corpus.txt

"$build/kdserved" --teacher "$teacher" --http "" --socket "unix:$PWD/teacher.sock" 2>teacher.log &
daemon=$!
trap 'kill $daemon 2>/dev/null || true; wait $daemon 2>/dev/null || true' EXIT
ask() { "$build/kdctl" --server "unix:$PWD/teacher.sock" "$@"; }
until ask model >/dev/null 2>&1; do kill -0 $daemon; sleep 0.5; done

# method NAME LINE...: one run for each seed, on what was captured (a line "live" asks the teacher instead)
method() {
	local name=$1 seed folder source line
	shift
	for seed in $seeds; do
		folder=runs/$name-$seed
		[ ! -d "$folder/student" ] || continue
		rm -rf "$folder"
		source="teacher = shards:$PWD/rows-$seed"
		for line; do [ "$line" != live ] || source="server = unix:$PWD/teacher.sock"; done
		{
			printf '%s\n' "$source" "tokenizer = $teacher" "corpus = $PWD/corpus.txt" "sequence-length = 128" "held-out = 0.06" \
				"student-width = 128" "student-layers = 4" "student-heads = 2" "student-kv-heads = 1" "student-ffn-width = 384" \
				"micro-batch = 4" "steps = $steps" "learning-rate = 0.003" "warmup = 20" "evaluate-every = $((steps / 10))" \
				"checkpoint-every = 0" "seed = $seed"
			for line; do [ "$line" = live ] || echo "$line"; done
		} >"runs/$name-$seed.conf"
		echo "students.sh: $name, seed $seed" >&2
		"$build/kdserved-worker" --config "runs/$name-$seed.conf" --output "$folder" 2>"runs/$name-$seed.log" ||
			{ tail -n 3 "runs/$name-$seed.log" >&2; exit 1; }
	done
}

mkdir -p runs
for seed in $seeds; do
	ask capture --length 128 --top-k 64 --draws 50 --seed "$seed" --entropy --store "rows-$seed" corpus.txt >"capture-$seed.txt" 2>&1
done
method cross-entropy "loss = cross-entropy"
method truncated "loss = forward-kl form=truncated"
method ghost "loss = forward-kl"
method rs-kd "loss = forward-kl form=draws draws=50"
method jsd "loss = jsd"
method taid "loss = taid"
method gkd "loss = jsd support=both:64" "rollouts = 0.5" "rollout-prompt = 32" "rollout-tokens = 96" live
python3 "$here/students.py" runs students
