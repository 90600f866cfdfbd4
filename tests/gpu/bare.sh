#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# bare.sh BUNDLE: tries the bundle of pack.sh in an empty folder that holds glibc, the compiler's runtime and the CUDA libraries and nothing else: every
# program must find its libraries, and say so properly where there is no GPU. 77 where this user may not change the root folder.
set -uo pipefail
bundle=$(realpath "$1"); root=$(mktemp -d); failed=0
trap 'rm -rf "$root"' EXIT
chroot=$(PATH=$PATH:/usr/sbin command -v chroot) && "$chroot" / /bin/true 2>/dev/null || { echo "bare.sh: skipped: chroot is not allowed here"; exit 77; }
mkdir -p "$root"/{tmp,bundle,lib64,libc,cuda}
cp -r "$bundle"/. "$root/bundle/"
loader=$(ldd "$bundle/bin/kdserved" | awk '/ld-linux/{print $1}')
mkdir -p "$root$(dirname "$loader")"; cp -L "$loader" "$root$loader"
for p in "$bundle"/bin/*; do ldd "$p"; done | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u | while read -r name path; do
	case $name in
	libc.so*|libm.so*|libdl.so*|libpthread.so*|librt.so*|libgcc_s.so*|libstdc++.so*) cp -L "$path" "$root/libc/$name" ;;
	libcublas*|libcudart*|libnccl*) ln -L "$path" "$root/cuda/$name" 2>/dev/null || cp -L "$path" "$root/cuda/$name" ;;
	esac
done
inside() { env -i LD_LIBRARY_PATH=/bundle/lib:/libc:/cuda top_srcdir=/bundle timeout -s TERM 60 "$chroot" "$root" "$@" 2>&1; }
try() {  # try STATUS TEXT COMMAND...: what it must end with, and say
	local status=$1 text=$2 said code; shift 2
	said=$(inside "$@"); code=$?
	[ $code = "$status" ] && [[ $said == *$text* ]] || { echo "bare.sh: $*: exit $code, expected $status and \"$text\":"; echo "$said"; failed=1; }
}
for p in "$root"/bundle/bin/*; do
	missing=$(inside "$loader" --list "/bundle/bin/$(basename "$p")" | grep 'not found')
	[ -z "$missing" ] || { echo "bare.sh: $(basename "$p"): $missing"; failed=1; }
done
model=/bundle/tests/golden/models/llama
try 0 kdserved /bundle/bin/kdserved --version
try 0 kdctl /bundle/bin/kdctl --version
if ! nvidia-smi -L >/dev/null 2>&1; then
	try 78 "no CUDA device" /bundle/bin/kdserved --teacher $model --device cuda --http 127.0.0.1:0 --socket ""
	try 77 "no CUDA device" /bundle/bin/test_tiny_cuda
	try 1 "no CUDA device" /bundle/bin/bench_score --teacher $model --device cuda
fi
[ $failed = 0 ] && echo "bare.sh: $(ls "$root/bundle/bin" | wc -l) programs find their libraries"
exit $failed
