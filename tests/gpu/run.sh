#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# run.sh libraries|check|sanitize|bench|all [OUT]: the GPU suite, from the folder that pack.sh made. Each stage has a time limit and leaves its log in
# OUT at once; a stage whose .done file is there is not run again. RUN_SECONDS [1500] limits the whole: a stage that would not end by then is left
# for the next call. At the end RUN_TAR, where that is set, is an archive of OUT: one file to carry home. 77 without a GPU.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd); what=${1:-check}; out=${2:-$here/out}
end=$((SECONDS + ${RUN_SECONDS:-1500}))
mkdir -p "$out"
# The CUDA libraries: of the toolkit, else of the Python that has PyTorch.
cuda=$(python3 - <<'PY' 2>/dev/null
import glob, os, site, sys
roots = site.getsitepackages() + [p for p in sys.path if p.endswith("-packages")] if hasattr(site, "getsitepackages") else sys.path
found = ["/usr/local/cuda/lib64"] + [d for r in roots for d in glob.glob(r + "/nvidia/*/lib")]
print(":".join(dict.fromkeys(d for d in found if os.path.isdir(d))))
PY
)
export LD_LIBRARY_PATH=$here/lib:$cuda:${LD_LIBRARY_PATH:-} top_srcdir=$here KDSERVED_TEACHER=${KDSERVED_TEACHER:-$here/teacher.gguf}
PATH=$PATH:/usr/local/cuda/bin
status=0
stage() {  # stage NAME SECONDS COMMAND...
	local name=$1 limit=$2 left=$((end - SECONDS)) began=$SECONDS code; shift 2
	[ ! -e "$out/$name.done" ] || { echo "== $name: done before"; return 0; }
	[ $left -ge $((limit / 4)) ] || { echo "== $name: no time left; run again"; status=1; return 0; }
	[ "$left" -ge "$limit" ] || limit=$left
	timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
	code=$?
	tail -n 4 "$out/$name.log"
	echo "== $name: exit $code after $((SECONDS - began)) s of at most $limit"
	[ $code = 0 ] && touch "$out/$name.done"
	[ $code = 0 ] || [ $code = 77 ] || status=1
}
gpu() { nvidia-smi -L >/dev/null 2>&1 || { echo "run.sh: no GPU here (nvidia-smi finds none): skipped"; exit 77; }; }
libraries() {
	local missing
	missing=$(for p in "$here"/bin/*; do ldd "$p" | grep 'not found' | sed "s,^,$(basename "$p"):,"; done | sort -u)
	[ -z "$missing" ] || { echo "$missing"; exit 1; }
}
check() {
	local t
	for t in test_ops_cuda test_invariance_cuda test_cached_cuda test_tiny_cuda test_train_cuda test_teacher_cuda test_stored_cuda test_streamed_cuda; do
		stage $t 180 "$here/bin/$t"
	done
}
sanitize() {  # sanitize TOOL...
	local tool
	command -v compute-sanitizer >/dev/null || { echo "run.sh: no compute-sanitizer here: skipped"; return 0; }
	for tool; do
		stage sanitize_tiny_$tool 140 compute-sanitizer --tool $tool --error-exitcode 1 "$here/bin/test_tiny_cuda"
		stage sanitize_train_$tool 140 compute-sanitizer --tool $tool --error-exitcode 1 "$here/bin/test_train_cuda"
	done
}
bench() { BENCH_SECONDS=$((end - SECONDS)) python3 "$here/bench.py" "$here" "$out" || status=1; }
case $what in
libraries) libraries; exit 0 ;;
check|bench) gpu; $what ;;
sanitize) gpu; sanitize racecheck memcheck initcheck synccheck ;;
all)  # races and bad addresses before figures; what is rarer after them; no figures of what does not compute right
	libraries; gpu; check
	[ $status = 0 ] && good=yes || { good=; echo "run.sh: the checks are not through: no figures before they are"; }
	sanitize racecheck memcheck
	[ -z "$good" ] || { bench; sanitize initcheck synccheck; } ;;
*) echo "run.sh libraries|check|sanitize|bench|all [OUT]" >&2; exit 2 ;;
esac
[ -z "${RUN_TAR:-}" ] || tar -C "$(dirname "$out")" -czf "$RUN_TAR" "$(basename "$out")"
exit $status
