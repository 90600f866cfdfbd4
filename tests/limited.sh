#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# limited.sh COMMAND...: runs one test. A test that has not ended after TEST_SECONDS [1800] is a failed one: it is told to abort (Python then shows
# where each thread stands), killed 20 s later, and the last line of its log says so.
# Tests on the emulated GPU take minutes with sanitizers: there only those run that show every kernel a bad address (TEST_EMULATED=all: all).
# So does comparing bits of the reference kernels, whose addresses test_ops_ref tries; and what reads scripts and sources reads the same ones.
export PYTHONFAULTHANDLER=1
case " $* " in
*/test_ops_emulated\ *|*/test_tiny_emulated\ *|*/test_need_emulated\ *) ;;
*_emulated\ *|*/gpu/test_faults.py\ *|*/ops/test_invariance_ref\ *)
	[ -z "${KDSERVED_TEST_SANITIZED:-}" ] || [ "${TEST_EMULATED:-}" = all ] || { echo "skipped: minutes with sanitizers (TEST_EMULATED=all)"; exit 77; } ;;
*/layering.sh\ *|*/test_completion.sh\ *|*/test_debian.sh\ *|*/test_units.sh\ *|*/test_tables.py\ *)
	[ -z "${KDSERVED_TEST_SANITIZED:-}" ] || { echo "skipped: shows the same in a build without sanitizers"; exit 77; } ;;
esac
[ -z "${KDSERVED_TEST_SANITIZED:-}" ] || export KD_KILLS="${KD_KILLS:-120}"       # of tests/crash, at random times
timeout --signal=ABRT --kill-after=20 "${TEST_SECONDS:-1800}" "$@"
status=$?
# 124: ended by the signal; 137: only by the kill
if [ $status = 124 ] || [ $status = 137 ]; then
	echo "not ended after ${TEST_SECONDS:-1800} s (TEST_SECONDS): $*"
	exit 1
fi
exit $status
