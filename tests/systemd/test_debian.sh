#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What debian/ says again of things that stand elsewhere: versions, what a build needs, the library's symbols, the files that are installed.
set -u
cd "$top_srcdir" || exit 99
[ -e debian/control ] || { echo "skipped: no debian/ here"; exit 77; }
scratch=$(mktemp -d) && trap 'rm -r "$scratch"' EXIT
failed=0
fail() { echo "FAILED: $*"; failed=1; }

version=$(sed -n 's/^AC_INIT(\[kdserved\], \[\([^]]*\)\].*/\1/p' configure.ac)
[ -n "$version" ] || fail "configure.ac has no version"
[ "$(sed -n '1s/^kdserved (\([^)]*\)).*/\1/p' debian/changelog)" = "$version" ] || fail "debian/changelog does not begin with $version"
grep -qx "version = \"$version\"" clients/python/pyproject.toml || fail "clients/python is not $version"

# Libraries that ./quickstart installs; compilers, make and autotools are build-essential's and debhelper's.
sed -n '/^BUILD_PACKAGES="/,/"$/p' quickstart | tr -d '"' | sed 's/^BUILD_PACKAGES=//' | tr '[:blank:]' '\n' | grep -vxE '|gcc|g\+\+|make|autoconf|automake|libtool|python3-pip' |
	sort >"$scratch/needed"
sed -n '/^Build-Depends:/,/^[A-Z].*:/{s/^Build-Depends:/ /; s/^ *\([a-z0-9.+-]*\).*/\1/p}' debian/control | grep -v '^debhelper' | sort >"$scratch/named"
[ "$(wc -l <"$scratch/needed")" -ge 9 ] || fail "quickstart's BUILD_PACKAGES were not understood"
for package in $(comm -23 "$scratch/needed" "$scratch/named"); do fail "debian/control does not build-depend on $package"; done
for package in $(comm -13 "$scratch/needed" "$scratch/named" | grep -vE '^(dh-|pybuild-|python3-setuptools)'); do
	fail "debian/control build-depends on $package, which quickstart does not install"
done

sed -n 's/^\t\(kd_[a-z_]*\);$/\1/p' clients/libkdclient.map | sort >"$scratch/map"
sed -n 's/^ \(kd_[a-z_]*\)@KDCLIENT_[0-9]* .*/\1/p' debian/libkdclient1.symbols | sort >"$scratch/symbols"
diff "$scratch/map" "$scratch/symbols" || fail "debian/libkdclient1.symbols is not what clients/libkdclient.map exports"

# Every manual page is in one package.
for page in man/*.[1-8]; do
	[ "$(cat debian/*.manpages | grep -c "/${page#man/}\$")" = 1 ] || fail "$page is not in one package"
done

# The tarball has it all: what git has, where there is git.
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
	for file in $(git ls-files debian); do
		grep -qE "(^|[[:space:]])$file([[:space:]]|\$)" etc/Makefile.inc || fail "$file is not in EXTRA_DIST"
	done
fi
exit $failed
