#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# How soon a daemon with a large store is READY after a crash: recovery.sh DIRECTORY [MEGABYTES [RECORD_TOKENS TOP_K]]. Makes a store
# (10,738 MB = 10 GiB), its writer killed, its bytes out of the page cache; then opens it, and starts kdserved on it and without it. With
# INDEX=no the index files are removed first: every shard is read. TEACHER names the model (without one only the store is opened), ROUNDS
# how often, ARGUMENTS more options. One CSV row per figure.
set -euo pipefail
dir=${1:?usage: recovery.sh DIRECTORY [MEGABYTES [RECORD_TOKENS TOP_K]]}; megabytes=${2:-10738}; shift; [ $# = 0 ] || shift
build=${top_builddir:-.}
work=$(mktemp -d "$dir/recovery-XXXXXX")
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null; rm -rf "$work"' EXIT

# Clean pages of the files are forgotten; what is dirty goes to the disk first.
forget() {
	sync -f "$work"
	python3 -c '
import os, sys
for name in os.scandir(sys.argv[1]):
    fd = os.open(name.path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)' "$work/store"
}
# Seconds from exec to the line that says READY's socket answers.
start_daemon() {    # NAME ARGUMENTS...
	local name=$1 port begin end; shift
	begin=$(date +%s.%N)
	"$build/kdserved" --teacher "$TEACHER" --http 127.0.0.1:0 ${ARGUMENTS:-} "$@" 2>"$work/log" &
	pid=$!
	until port=$(sed -n 's|.*listening on http://127.0.0.1:\([0-9]*\).*|\1|p' "$work/log") && [ -n "$port" ] &&
		curl -sf -o /dev/null "http://127.0.0.1:$port/ready"; do
		kill -0 "$pid" || { cat "$work/log" >&2; exit 1; }
		sleep 0.02
	done
	end=$(date +%s.%N)
	kill "$pid"; wait "$pid" || true; pid=
	echo "ready_$name,$(awk "BEGIN { printf \"%.2f\", $end - $begin }"),s,load,$(cut -d' ' -f1 /proc/loadavg)"
}

("$build/tests/bench/bench_open" fill "$work/store" "$megabytes" "$@" || true) 2>/dev/null
[ "${INDEX:-yes}" = yes ] || rm "$work"/store/*.index
newest=$(ls "$work/store" | grep shard | tail -1)
cp -a "$work/store/$newest" "$work/newest"
again() {      # opening mends the newest shard: each start finds it as the crash left it
	cp -a "$work/newest" "$work/store/$newest"
	[ "${INDEX:-yes}" = yes ] || rm -f "$work"/store/*.index
	forget
}
again
"$build/tests/bench/bench_open" open "$work/store"
[ -n "${TEACHER:-}" ] || exit 0
start_daemon without >/dev/null              # the model's bytes are in memory then
for ((i = 0; i < ${ROUNDS:-2}; i++)); do
	again
	start_daemon with_store --store "$work/store"
	start_daemon without
done
