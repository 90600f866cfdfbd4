#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What etc/ ships for other programs, held to those programs' own checks: promtool, haproxy, kubernetes-validate. Those that are not
# installed are passed over; exit 77 when none is.
top=${top_srcdir:-$(dirname "$0")/../..}
ran=0 failed=0

# check PROGRAM ARGUMENT...
check() {
	command -v "$1" >/dev/null || { echo "SKIP: $1 is not installed"; return; }
	ran=1
	"$@" || { failed=1; echo "FAIL: $*"; }
}

check promtool check rules "$top/etc/prometheus/kdserved.rules.yml"
check promtool check config "$top/etc/prometheus/prometheus.yml"
check promtool test rules "$top/etc/prometheus/kdserved.test.yml"
check haproxy -c -f "$top/etc/haproxy/haproxy.cfg"
check kubernetes-validate --strict "$top/etc/kubernetes/kdserved.yaml"
check bash -n "$top/etc/slurm/kdserved-worker.sbatch"
[ $failed = 0 ] || exit 1
[ $ran = 1 ] || exit 77
