#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The units say nothing systemd does not know, and what systemd-analyze thinks of their sandbox stays below the bars: 1.5 for the units as shipped,
# 0.7 for the one that systemd opens the sockets of (sealed.conf), 0.6 without a GPU besides.
set -u
command -v systemd-analyze >/dev/null || { echo "skipped: no systemd-analyze"; exit 77; }
units=$top_builddir/etc
drop_ins=$top_srcdir/etc/systemd
scratch=$(mktemp -d) && trap 'rm -r "$scratch"' EXIT
failed=0

fail() { echo "FAILED: $*"; failed=1; }

# score NAME BAR(tenths) UNIT [DROP-IN...]: drop-ins are what systemd makes of them, lines behind the unit's.
score() {
	local name=$1 bar=$2 unit=$3 out drop_in
	shift 3
	mkdir -p "$scratch/$name"
	cp "$units/$unit" "$scratch/$name/"
	for drop_in in "$@"; do
		cat "$drop_ins/$drop_in" >>"$scratch/$name/$unit"
	done
	out=$(systemd-analyze security --offline=true --no-pager --threshold="$bar" "$scratch/$name/$unit" 2>&1) ||
		{ printf '%s\n' "$out" | grep -v '✓'; fail "$name is above $bar tenths"; }
	case $out in *"Invalid"* | *"ignoring"* | *"Unknown"*) printf '%s\n' "$out" | grep -E 'Invalid|ignoring|Unknown'; fail "$name: see above" ;; esac
	printf '%s: %s\n' "$name" "$(printf '%s\n' "$out" | sed -n 's/.*Overall exposure level.*: \([0-9.]*\).*/\1/p')"
}

score shipped 15 kdserved.service
score template 15 kdserved@.service
score lan 15 kdserved.service lan.conf
score sealed 7 kdserved.service sealed.conf
score sealed-cpu 6 kdserved.service sealed.conf cpu.conf
# Can it fail at all?
sed -i '/^CapabilityBoundingSet=/d' "$scratch/shipped/kdserved.service"
systemd-analyze security --offline=true --no-pager --threshold=15 "$scratch/shipped/kdserved.service" >/dev/null 2>&1 &&
	fail "a unit with every capability passes"

# What no score counts and the booted container sets otherwise or cannot see: life, limits, secrets in core dumps.
says() {
	local unit=$1 line
	shift
	for line in "$@"; do
		grep -qxF -e "$line" "$units/$unit" || fail "$unit does not say $line"
	done
}
for unit in kdserved.service kdserved@.service; do
	says $unit Type=notify NotifyAccess=main WatchdogSec=30 KillMode=mixed Restart=on-failure RestartSec=2 \
		'RestartPreventExitStatus=2 69 78' OOMPolicy=continue LimitNOFILE=65536 LimitMEMLOCK=1G LimitCORE=0 UMask=0077 StateDirectoryMode=0750
	# A start that fails after so many seconds must still come to an end of starts: the window holds them all.
	slowest=1200
	window=$(sed -n 's/^StartLimitIntervalSec=\([0-9]*\)$/\1/p' "$units/$unit")
	burst=$(sed -n 's/^StartLimitBurst=\([0-9]*\)$/\1/p' "$units/$unit")
	[ "${window:-0}" -ge $((slowest * ${burst:-1000})) ] ||
		fail "$unit: $burst starts of $slowest s do not fall into StartLimitIntervalSec=$window: it would be started for ever"
	[ "${burst:-0}" -ge 10 ] || fail "$unit: StartLimitBurst=$burst is too few for starts by hand, which count too"
	drain=$(sed -n 's/^RELOADABLE(drain_timeout, "drain-timeout", [^"]*"\([0-9]*\)s",.*/\1/p' "$top_srcdir/daemon/options.def")
	stop=$(sed -n 's/^TimeoutStopSec=\([0-9]*\)$/\1/p' "$units/$unit")
	[ "${stop:-0}" -ge $((${drain:-1000000} + 10)) ] || fail "$unit: TimeoutStopSec=$stop is no 10 s more than drain-timeout, $drain s"
done
for unit in kdserved.socket kdserved@.socket kdserved-http.socket kdserved-http@.socket; do
	says $unit SocketUser=kdserved SocketGroup=kdserved SocketMode=0660 Backlog=4096
done

# Every line is one that systemd knows; the programs need not be installed here.
mkdir "$scratch/verify"
for unit in kdserved.service kdserved.socket kdserved-http.socket kdserved@.service kdserved@.socket kdserved-http@.socket; do
	sed -E 's|^(Exec[A-Za-z]*)=/[^ ]*kdserved |\1=/bin/true |; /^(User|Group|SocketUser|SocketGroup)=/d' "$units/$unit" >"$scratch/verify/${unit/@/@one}"
	grep -q '@[a-z_]*@' "$units/$unit" && fail "$unit: a word was not replaced"
done
SYSTEMD_UNIT_PATH=$scratch/verify: systemd-analyze verify --man=no --recursive-errors=no "$scratch"/verify/*.s* >"$scratch/said" 2>&1
grep "$scratch/verify" "$scratch/said" && fail "systemd-analyze verify says the above"
exit $failed
