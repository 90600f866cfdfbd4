#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# lint.sh BUILD-FOLDER [FILE...]: cppcheck over the tree and clang-tidy (.clang-tidy) over these .c files, else over all but the tests. Ends with
# status 1 when either has something to say, 77 when one of them is not installed. Reasons for what is not asked: .clang-tidy, cppcheck.txt.
#
# What was found clean is not read again: BUILD-FOLDER/.lint keeps the sums of each clean file, of the headers it includes and of what it was asked
# (settings), and cppcheck's own notes. When one differs the file is read again.
#
# All but 2 % of the time is the analyser's. LINT_MODE=shallow, as it is by default, has it follow a function and the shortest of those it calls,
# which takes 0.4 s of processor time a file; LINT_MODE=deep follows all that a file holds, which takes 4.7 s and says more that is not so: it does
# not know what the kernel and the libraries write through a pointer.
set -u
build=$(realpath "$1")
shift
cd "$(dirname "$0")/../.." || exit 99
for tool in cppcheck clang-tidy; do
	command -v $tool >/dev/null || { echo "$tool is not installed"; exit 77; }
done
jobs=$(nproc)
kept=$build/.lint
settings=$kept/settings
mode=${LINT_MODE:-shallow}
mkdir -p "$kept/clean" "$kept/cppcheck" || exit 99
failed=0

flags=(-std=gnu11 -I. "-I$build" -D_GNU_SOURCE -DHAVE_CONFIG_H '-DSYSCONFDIR="/etc"' '-DPKGLIBEXECDIR="/usr/libexec"')
# what is built only where Open MPI is
without=daemon/worker/team_mpi.c
pkg-config --exists ompi-c && without= && read -r -a more < <(pkg-config --cflags ompi-c) && flags+=("${more[@]}")
{ clang-tidy --version; clang-tidy --dump-config; printf '%s\n' "${flags[@]}" "$mode"; } >"$settings"

# Of files for one instruction set alone.
bf16=(-march=x86-64-v4 -mavx512bf16)

# stamp FILE: where its sums are kept
stamp() {
	echo "$kept/clean/${1//\//+}"
}

# tidy FILE LABEL: clang-tidy over one file. The sums are those from before it was read: what is edited meanwhile is read again.
tidy() {
	local sums said start=$SECONDS of_file=("${flags[@]}")
	case $1 in kernels/cpu/vector*_bf16.c) of_file+=("${bf16[@]}") ;; esac
	# the rule that -MM writes, without its target: names, escaped as xargs reads them
	sums=$(${CC:-cc} -MM "${of_file[@]}" "$1" | sed -e '1s/^[^:]*://' -e 's/\\$//' | xargs sha256sum "$settings") || return 1
	if said=$(clang-tidy -quiet "$1" -- "${of_file[@]}" -Xclang -analyzer-config -Xclang mode="$mode" 2>&1); then
		echo "$sums" >"$(stamp "$1")"
		echo "lint: $2 $1: clean, $((SECONDS - start)) s"
		return 0
	fi
	echo "lint: $2 $1: findings, $((SECONDS - start)) s"
	grep -vE '^([0-9]+ warnings?|Suppressed [0-9]+|Use -header-filter)' <<<"$said"
	return 1
}

if [ $# = 0 ]; then
	echo "lint: cppcheck"
	cppcheck -q -j "$jobs" --cppcheck-build-dir="$kept/cppcheck" --enable=warning,portability,performance --inline-suppr --std=c11 -I. \
		-D__GNUC__ -D_GNU_SOURCE --suppressions-list=<(grep -v '^//' tests/lint/cppcheck.txt) --error-exitcode=1 \
		common daemon clients kernels/*.c kernels/cpu kernels/ref || failed=1
	mapfile -t files < <(find common daemon clients kernels -name '*.c' -not -path 'clients/python/*' -not -path "$without" | sort)
	set -- "${files[@]}"
fi
todo=()
for file; do
	sha256sum -c --status "$(stamp "$file")" 2>/dev/null || todo+=("$file")
done
echo "lint: clang-tidy, $# files, ${#todo[@]} of them not known to be clean"
rm -f "$kept/found"
n=0
for file in "${todo[@]}"; do
	# as many at once as there are processors
	[ $n -lt "$jobs" ] || wait -n
	{ tidy "$file" "$((n + 1))/${#todo[@]}" || touch "$kept/found"; } &
	n=$((n + 1))
done
wait
[ ! -e "$kept/found" ] || failed=1
[ $failed = 0 ] && echo "lint: clean"
exit $failed
