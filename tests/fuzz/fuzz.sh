#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh SOURCE TARGET SECONDS: one target (tests/fuzz/fuzz_X in the build folder, which is the working folder) for so long. What is new to the
# corpus goes to fuzz-new/X, a finding to fuzz-found-X-*, the log to TARGET.fuzz; its last line is the verdict. Exit status 1: a finding.
# FUZZ_SEED: of the mutations [0: another each time].
set -u
source=$1 target=$2 seconds=$3
name=${target##*fuzz_}
dictionary=$source/tests/fuzz/dictionaries/$name.dict
mkdir -p "fuzz-new/$name"
more=()
[ ! -f "$dictionary" ] || more=(-dict="$dictionary")
"$target" -seed="${FUZZ_SEED:-0}" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="fuzz-found-$name-" "${more[@]}" \
	"fuzz-new/$name" "$source/tests/fuzz/corpus/$name" >"$target.fuzz" 2>&1
status=$?
number() { sed -n "s/^stat::$1: *//p" "$target.fuzz" | tail -n 1; }
verdict="fuzz: $name: $(number number_of_executed_units) inputs, $(number peak_rss_mb) MB"
if [ $status != 0 ]; then
	tail -n 40 "$target.fuzz"
	verdict="fuzz: $name: FOUND something (status $status): $(sed -n 's/.*Test unit written to //p' "$target.fuzz" | tail -n 1)"
fi
echo "$verdict" | tee -a "$target.fuzz"
[ $status = 0 ]
