#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A teacher under a memory cap of a quarter of its size (matrices as they are computed with) against the same one in memory: tokens per
# second of scoring at all positions, in rounds that take turns on the same processors. The model has random weights in the shape of a
# Llama of 1.24 billion parameters; it is made in a temporary folder and removed again.
#
#   tests/bench/streamed.sh [ROUNDS [SEQUENCES]]        from the build's folder; sequences of 512 tokens, in one pass; default 3 and 3
#
# Prints a CSV line a round, then the medians. Needs python3, 8 GiB of memory (12 while the model is made) and 8 GiB of disk in $TMPDIR.
set -euo pipefail
top=${top_srcdir:-$(cd "$(dirname "$0")/../.." && pwd)}
commit=$(git -C "$top" rev-parse --short HEAD 2>/dev/null || echo unknown)
PYTHONPATH=$top/tests/e2e top_builddir=${top_builddir:-$PWD} exec python3 "$top/tests/bench/streamed.py" "$commit" "${1:-3}" "${2:-3}"
