#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the Debian that test_boot.py and test_packages.py boot, once: a minimal bookworm with systemd and the libraries the daemon needs, kept in
# the cache (330 MB, downloads about 120 MB from the machine's own mirror). Nothing of it runs until a test boots a copy.
set -euo pipefail
root=${XDG_CACHE_HOME:-$HOME/.cache}/kdserved/boot/root
# (the last: what a root made by an earlier version of this lacks)
[ ! -e "$root/usr/lib/python3/dist-packages/numpy" ] || { echo "$root is there already"; exit 0; }
packages=systemd,systemd-sysv,libmicrohttpd12,libjansson4,liburing2,libpcre2-8-0,libdnnl2,libnettle8,libzstd1,libgomp1,libgnutls30,python3,python3-numpy,curl
mkdir -p "$(dirname "$root")"
part=$(mktemp -d "$root.XXXXXX")
trap 'rm -rf "$part"' EXIT
if command -v mmdebstrap >/dev/null; then
	mmdebstrap --variant=minbase --include=$packages bookworm "$part/root"
elif command -v debootstrap >/dev/null; then
	debootstrap --variant=minbase --include=$packages bookworm "$part/root"
else
	echo "boot_root.sh: install the Debian package mmdebstrap or debootstrap" >&2
	exit 1
fi
[ ! -e "$root" ] || mv "$root" "$part/old"
mv "$part/root" "$root"
