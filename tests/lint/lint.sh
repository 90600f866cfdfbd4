#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# lint.sh BUILD-FOLDER [FILE...]: cppcheck over the tree and clang-tidy (.clang-tidy) over these .c files, else over all but the tests. Ends with
# status 1 when either has something to say, 77 when one of them is not installed. Reasons for what is not asked: .clang-tidy, cppcheck.txt.
set -u
build=$(realpath "$1")
shift
cd "$(dirname "$0")/../.." || exit 99
for tool in cppcheck clang-tidy; do
	command -v $tool >/dev/null || { echo "$tool is not installed"; exit 77; }
done
failed=0
out=$(mktemp) || exit 99
trap 'rm -f "$out"' EXIT
if [ $# = 0 ]; then
	echo "lint: cppcheck"
	cppcheck -q -j "$(nproc)" --enable=warning,portability,performance --inline-suppr --std=c11 -I. -D__GNUC__ -D_GNU_SOURCE \
		--suppressions-list=<(grep -v '^//' tests/lint/cppcheck.txt) --error-exitcode=1 common daemon clients kernels/*.c kernels/cpu kernels/ref || failed=1
	mapfile -t files < <(find common daemon clients kernels -name '*.c' -not -path 'clients/python/*' | sort)
	set -- "${files[@]}"
fi
echo "lint: clang-tidy, $# files"
flags=(-std=gnu11 -I. "-I$build" -D_GNU_SOURCE -DHAVE_CONFIG_H '-DSYSCONFDIR="/etc"' '-DPKGLIBEXECDIR="/usr/libexec"')
for package in ompi-c; do
	pkg-config --exists $package && read -r -a more < <(pkg-config --cflags $package) && flags+=("${more[@]}")
done
printf '%s\0' "$@" | xargs -0 -P "$(nproc)" -I FILE clang-tidy -quiet FILE -- "${flags[@]}" >>"$out" 2>/dev/null
grep -E ' (warning|error): ' "$out" && failed=1
[ $failed = 0 ] && echo "lint: clean"
exit $failed
