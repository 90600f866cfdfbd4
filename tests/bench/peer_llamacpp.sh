#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# All-position scoring, kdserved against llama.cpp and PyTorch: same cores, interleaved processes, llama.cpp with the same weights, PyTorch with
# random ones of the same shape (peer_torch_score.py) in bf16 where the processor multiplies it; writes one CSV row per process.
# usage: peer_llamacpp.sh BUILD_FOLDER WORK_FOLDER|- [ROUNDS=4] [THREADS=2] [LENGTH=512] [SEQUENCES=4]
# -: no llama.cpp. PASSES: of a process, behind a first that does not count [5]; NUMERICS: kdserved's [auto]; KINDS: llama.cpp's, and its own of
# the teacher [BF16 F32 file]; TORCH: an interpreter with PyTorch [none]; CSV: the file rows are added to [WORK_FOLDER/peer_llamacpp.csv];
# HEADER= (empty): none on stdout.
# WORK_FOLDER receives llama.cpp (from the Python package llama-cpp-python's source archive, built with the machine's own instructions)
# and the model as BF16 GGUF. Needs cmake, g++, python3-venv.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '5,10p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd) work=$2 rounds=${3:-4} threads=${4:-2} length=${5:-512} sequences=${6:-4} passes=${PASSES:-5}
teacher=${KDSERVED_TEACHER:-${XDG_CACHE_HOME:-$HOME/.cache}/kdserved/SmolLM2-135M-Instruct.Q4_1.gguf}
[ -z "${CSV:-}" ] || CSV=$(realpath "$CSV")
own=
if [ "$work" = - ]; then
	own=yes work=$(mktemp -d) CSV=${CSV:-/dev/null}
	trap 'rm -r "$work"' EXIT
fi
mkdir -p "$work"; cd "$work"

if [ -z "$own" ] && [ ! -x peer_llamacpp ]; then
	[ -d venv ] || { python3 -m venv venv; venv/bin/pip install --quiet gguf==0.19.0; }
	[ -d source ] || { venv/bin/pip download --quiet --no-deps --no-binary :all: llama-cpp-python==0.3.36 -d .; mkdir source; tar xzf llama_cpp_python-*.tar.gz -C source --strip-components=1; }
	tree=source/vendor/llama.cpp
	cmake -S $tree -B llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
		-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF >llama.log
	cmake --build llama -j"$(nproc)" --target llama >>llama.log
	gcc -O2 "$here/peer_llamacpp.c" -I$tree/include -I$tree/ggml/include -Lllama/bin -Wl,-rpath,"$PWD/llama/bin" -lllama -lggml -lggml-base -o peer_llamacpp
fi
for kind in BF16 F32; do
	[ -n "$own" ] || [ -f model-$kind.gguf ] || venv/bin/python "$here/gguf_to_bf16.py" "$teacher" model-$kind.gguf $kind
done

csv=${CSV:-peer_llamacpp.csv} header=date,commit,cpu,threads,length,sequences,engine,median_tokens_s,best_tokens_s,load
[ -s "$csv" ] || echo "$header" >>"$csv"
[ -z "${HEADER-1}" ] || echo "$header"
row() { # ENGINE "median X best Y"
	# shellcheck disable=SC2086
	set -- "$1" $2
	[ $# -eq 5 ] || { echo "peer_llamacpp.sh: $1 said \"$*\", not its median and best" >&2; exit 1; }
	echo "$(date -u +%F),$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo -),$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1),$threads,$length,$sequences,$1,$3,$5,$(cut -d' ' -f1 /proc/loadavg)" |
		tee -a "$csv"
}
ours() { # NUMERIC: "median X best Y" of bench_score: a line of CSV, whose last columns come after a text that may hold commas, and a line for each pass
	"$build/tests/bench/bench_score" --teacher "$teacher" --device cpu --numeric "$1" --threads "$threads" --length "$length" \
		--sequences "$sequences" --top-k 64 --passes "$passes" 2>passes.log | tee ours.csv >&2
	awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "tokens_per_s") behind = NF - i } NR == 2 && behind { print "median", $(NF - behind) }' ours.csv
	awk '/^pass [1-9][0-9]* of / && $5 > best { best = $5 } END { if (!best) exit 1; print "best", best }' passes.log
}
precision=f32
! grep -q avx512_bf16 /proc/cpuinfo || precision=bf16
torch() { # tuned: memory is never given back (else each large array would be mapped anew), threads that wait do not spin
	MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=67108864 GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-0} \
		"$TORCH" "$here/peer_torch_score.py" "$precision" "$threads" "$length" "$sequences" "$passes"
}
for ((round = 0; round < rounds; round++)); do
	for numeric in ${NUMERICS:-auto}; do
		speed=$(ours "$numeric" | tr '\n' ' ')
		row "kdserved-$(sed -n '2s/^[^,]*,\([^,]*\),.*/\1/p' ours.csv)" "$speed"
	done
	if [ -n "${TORCH:-}" ]; then
		read -r version speed < <(torch)
		row "torch-$version-$precision" "$speed"
	fi
	[ -z "$own" ] || continue
	for kind in ${KINDS:-BF16 F32 file}; do
		case $kind in
		file) row llama.cpp-Q4_1 "$(./peer_llamacpp "$teacher" "$threads" "$length" "$sequences" "$passes")" ;;
		*) row "llama.cpp-$kind" "$(./peer_llamacpp "model-$kind.gguf" "$threads" "$length" "$sequences" "$passes")" ;;
		esac
	done
done
