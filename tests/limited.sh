#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# limited.sh COMMAND...: runs one test. A test that has not ended after TEST_SECONDS [600] is a failed one: it is told to abort (Python then shows
# where each thread stands), killed 20 s later, and the last line of its log says so.
# Tests on the emulated GPU are slow: TEST_EMULATED=no leaves them to another build (./quickstart check: to the one with sanitizers), but for a
# whole teacher, which takes minutes there and is left to the one without.
export PYTHONFAULTHANDLER=1
case " $* " in
*/test_teacher_emulated\ *)
	[ -z "${KDSERVED_TEST_SANITIZED:-}" ] || { echo "skipped: minutes with sanitizers"; exit 77; } ;;
*_emulated\ *|*/gpu/test_faults.py\ *)
	[ "${TEST_EMULATED:-yes}" = yes ] || { echo "skipped: TEST_EMULATED=$TEST_EMULATED"; exit 77; } ;;
esac
timeout --signal=ABRT --kill-after=20 "${TEST_SECONDS:-600}" "$@"
status=$?
# 124: ended by the signal; 137: only by the kill
if [ $status = 124 ] || [ $status = 137 ]; then
	echo "not ended after ${TEST_SECONDS:-600} s (TEST_SECONDS): $*"
	exit 1
fi
exit $status
