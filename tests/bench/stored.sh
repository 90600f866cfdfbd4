#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A quantised teacher under a memory cap that its matrices fit only as its file has them, unpacked in every pass, against the same one packed
# in memory: seconds of scoring at all positions, in rounds that take turns on the same processors.
#
#   tests/bench/stored.sh TEACHER [ROUNDS [SEQUENCES]]        from the build's folder; sequences of 512 tokens, in one pass; default 9 and 4
#
# Prints a CSV line a round, then the medians. Needs python3.
set -euo pipefail
top=${top_srcdir:-$(cd "$(dirname "$0")/../.." && pwd)}
commit=$(git -C "$top" rev-parse --short HEAD 2>/dev/null || echo unknown)
PYTHONPATH=$top/tests/e2e top_builddir=${top_builddir:-$PWD} exec python3 "$top/tests/bench/stored.py" "$1" "$commit" "${2:-9}" "${3:-4}"
