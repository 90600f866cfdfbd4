#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# pack.sh BUILD SOURCE FOLDER: makes FOLDER, from which the GPU suite runs on a machine where nothing can be installed: stripped programs, the
# shared libraries that a bare CUDA machine lacks, the golden files and the scripts. cuBLASLt, NCCL and the CUDA runtime are the machine's own
# (run.sh finds them). FOLDER.tar.xz is the same to carry: below 64 MiB, or this fails.
set -euo pipefail
build=$(realpath "$1"); source=$(realpath "$2"); to=$3; shift 3
[ ! -e "$to" ] || { echo "pack.sh: $to exists" >&2; exit 1; }
mkdir -p "$to/bin" "$to/lib" "$to/tests"
to=$(realpath "$to")
programs="kdserved kdserved-worker kdctl tests/ops/test_ops_cuda tests/ops/test_invariance_cuda tests/ops/test_cached_cuda tests/gpu/test_tiny_cuda
	tests/gpu/test_train_cuda tests/gpu/test_teacher_cuda tests/gpu/test_stored_cuda tests/gpu/test_streamed_cuda tests/bench/bench_score tests/bench/bench_ops tests/bench/bench_train tests/bench/bench_numeric"
real_program() { local d=$(dirname "$1") b=$(basename "$1"); if [ -f "$d/.libs/$b" ]; then echo "$d/.libs/$b"; else echo "$1"; fi; }
for p in $programs; do
	f=$(real_program "$build/$p")
	[ -f "$f" ] || { echo "pack.sh: $p is not built" >&2; exit 1; }
	strip -o "$to/bin/$(basename "$p")" "$f"
done
# What glibc, the compiler's runtime and CUDA bring is there; everything else travels.
there='^(ld-linux|linux-vdso|libc\.so|libm\.so|libdl\.so|libpthread\.so|librt\.so|libcuda|libcublas|libcudart|libnccl|libgcc_s|libstdc\+\+)'
for p in $programs; do
	ldd "$(real_program "$build/$p")"
done | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u | while read -r name path; do
	echo "$name" | grep -qE "$there" || { cp -L "$path" "$to/lib/$name"; strip --strip-unneeded "$to/lib/$name" 2>/dev/null || true; }
done
cp -L "$build"/.libs/libkdclient.so.? "$to/lib/"        # of this tree, not of the system
cp -r "$source/tests/golden" "$to/tests/golden"
rm -rf "$to/tests/golden/tokenizer"
cp -r "$source/etc/teacher" "$to/small"                 # for bench_numeric
cp "$source"/tests/gpu/{run.sh,bench.py,make_model.py} "$to/"
tar -C "$(dirname "$to")" -c "$(basename "$to")" | xz -2 -T2 > "$to.tar.xz"
bytes=$(stat -c %s "$to.tar.xz")
echo "pack.sh: $to.tar.xz, $((bytes / 1048576)) MiB ($(du -sm "$to" | cut -f1) MiB unpacked)"
[ "$bytes" -lt $((64 << 20)) ] || { echo "pack.sh: more than 64 MiB" >&2; exit 1; }
