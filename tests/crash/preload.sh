#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The faults of fault.h reach a program that knows nothing of them: libfault.so before liburing and libc.
set -eu
module=${top_builddir:-.}/tests/crash/.libs/libfault.so
writer=${top_builddir:-.}/tests/crash/store_writer
dir=$(mktemp -d "${TMPDIR:-/tmp}/kdserved-preload-XXXXXX")
trap 'rm -rf "$dir"' EXIT
[ -e "$module" ] || { echo "no $module: built without shared libraries"; exit 77; }
# A sanitizer's runtime wants to be loaded first.
! ldd "$module" | grep -q -E 'lib[at]san' || { echo "not with a sanitizer"; exit 77; }

# Results are injected through a NOP that returns what it is told: since Linux 6.10.
printf '6.10\n%s\n' "$(uname -r)" | sort -CV || { echo "Linux $(uname -r) cannot inject results"; exit 77; }

# expect NAME FAULT PATTERN: ten records under this fault print a line like PATTERN, and all that was stored is there afterwards.
expect() {
	line=$(LD_PRELOAD=$module KD_FAULT=$2 "$writer" "$dir/$1" 10)
	after=$("$writer" "$dir/$1" 0)
	echo "$1: $line; then: $after"
	[[ $line =~ $3 ]] || { echo "expected: $3"; exit 1; }
	[[ $line =~ stored\ ([0-9]+) ]]
	[[ $after =~ records\ ${BASH_REMATCH[1]}\ corrupt\ 0 ]] || { echo "expected ${BASH_REMATCH[1]} records"; exit 1; }
}
ring=$("$writer" "$dir/plain" 1)
[[ $ring == "uring 1"* ]] || { echo "no io_uring here"; exit 77; }
expect no_ring setup:1:-1 'uring 0 stored 10 failed 0 shards 1'
expect write_error write:4:-5 'uring 1 stored 10 failed 0 shards 2'
expect fsync_error fsync:6:-5 'uring 1 stored 10 failed 0 shards 2'
expect short_write write:4:0:3:7 'uring 1 stored 10 failed 0 shards 1'
expect disk_full write:6:-28 'uring 1 stored [1-9] failed [1-9] shards 1'
