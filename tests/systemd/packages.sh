#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# packages.sh SOURCE OUT: builds the Debian packages from an unpacked tarball, in a copy of it, has lintian look at them, and leaves them in OUT. Exit
# 77: what that takes is not installed.
set -euo pipefail
source=$(realpath -- "$1")
out=$2
# The system's own Python and compilers; with ccache before them where it is installed.
PATH=/usr/lib/ccache:/usr/sbin:/usr/bin:/sbin:/bin
for tool in dpkg-buildpackage lintian dh; do
	command -v $tool >/dev/null || { echo "skipped: no $tool (Debian packages debhelper, lintian)"; exit 77; }
done
(cd "$source" && dpkg-checkbuilddeps) || { echo "skipped: the above is not installed (apt-get build-dep $source)"; exit 77; }
# always the same place, so that a compiler cache knows what it compiled there before
scratch=$(realpath -m -- "$out").build
rm -rf "$scratch"
mkdir "$scratch"
trap 'rm -rf "$scratch"' EXIT
cp -a "$source" "$scratch/tree"
# What make and the caller's environment say is none of the package's business.
(cd "$scratch/tree" && env -i PATH="$PATH" HOME="$HOME" CCACHE_DIR="${CCACHE_DIR:-$HOME/.cache/ccache}" TERM=dumb LC_ALL=C.UTF-8 DEB_BUILD_OPTIONS="parallel=$(nproc) ${DEB_BUILD_OPTIONS:-}" \
	dpkg-buildpackage --unsigned-source --unsigned-changes) >"$scratch/log" 2>&1 || { tail -n 60 "$scratch/log"; echo "FAILED: dpkg-buildpackage"; exit 1; }
# Errors and warnings fail; what is only remarked upon is shown.
status=0
lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs --allow-root "$scratch"/*.changes || status=1
rm -rf "$out"
mkdir -p "$out"
cp "$scratch"/*.deb "$out/"
[ $status = 0 ] || echo "FAILED: lintian found the above"
exit $status
