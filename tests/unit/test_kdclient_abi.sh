#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# libkdclient as its users get it: the header stands alone in C and C++, the library exports exactly its functions, each with a version.
set -u
header=$top_srcdir/clients/kdclient.h library=$top_builddir/.libs/libkdclient.so
[ -e "$library" ] || { echo "skipped: no shared library"; exit 77; }
work=$(mktemp -d) || exit 99
trap 'rm -rf "$work"' EXIT
failed=0
fail() { echo "$*"; failed=1; }

# shellcheck disable=SC2086
compile() { # COMPILER LANGUAGE STANDARD
	{
		echo '#include "kdclient.h"'
		echo 'int main(void) {'
		echo 'struct kd_options o = KD_OPTIONS_INIT; struct kd_query q = KD_QUERY_INIT; struct kd_request r = KD_REQUEST_INIT; struct kd_generation g = KD_GENERATION_INIT;'
		echo 'return o.size == sizeof o && q.size == sizeof q && q.last == -1 && r.size == sizeof r && g.size == sizeof g && g.n == 1 ? 0 : 1; }'
	} >"$work/use.$2"
	$1 -std=$3 -Wall -Wextra -pedantic -Werror -fsyntax-only -I"$top_srcdir/clients" "$work/use.$2" || fail "$header does not compile as $3"
}
for standard in c99 c11; do compile "$CC" c $standard; done
for standard in c++11 c++17; do
	$CXX --version >"$work/found" 2>&1 || { echo "no C++ compiler: C++ is not tried"; break; }
	compile "$CXX" cc $standard
done

grep -vE 'static inline|^#' "$header" | grep -oE '\bkd_[a-z_]+\(' | tr -d '(' | sort -u >"$work/declared"
grep -oE '^[[:space:]]kd_[a-z_]+;' "$top_srcdir/clients/libkdclient.map" | tr -d '\t ;' | sort >"$work/mapped"
$NM -D --defined-only "$library" | awk '{print $3}' | grep -v '^KDCLIENT_[0-9]*$' >"$work/symbols"
grep -vE '^kd_[a-z_]+@@KDCLIENT_[0-9]+$' "$work/symbols" | grep -vE '^__?(asan|ubsan|tsan|sanitizer|odr_asan)' && fail "exported without being one of ours"
sed -n 's/@@.*//p' "$work/symbols" | grep '^kd_' | sort >"$work/exported"
[ "$(wc -l <"$work/declared")" -gt 10 ] || fail "found no functions in $header"
diff "$work/declared" "$work/mapped" || fail "kdclient.h and libkdclient.map differ"
diff "$work/mapped" "$work/exported" || fail "libkdclient.map and the library differ"
exit $failed
