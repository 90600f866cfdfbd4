#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Two daemons, each pinned to a processor, behind HAProxy (etc/haproxy/haproxy.cfg with other ports), against one of them behind the same
# proxy: the ratio of answered requests per second, in rounds that take turns, so that what else the machine does falls on both alike.
#
#   tests/bench/scale_out.sh MODEL [ROUNDS [SECONDS]]        from the build's folder; needs haproxy, python3, two processors
#
# Prints one CSV line a round (one, two, ratio), at last the median ratio and the machine's load. Exit status 77 without HAProxy or a second
# processor. Questions are all different, no store: each is computed.
set -euo pipefail
model=${1:?usage: scale_out.sh MODEL [ROUNDS [SECONDS]]}
rounds=${2:-5} seconds=${3:-10}
command -v haproxy >/dev/null || { echo "SKIP: haproxy is not installed"; exit 77; }
[ "$(nproc)" -ge 2 ] || { echo "SKIP: one processor"; exit 77; }
top=${top_srcdir:-$(cd "$(dirname "$0")/../.." && pwd)}
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$dir"' EXIT

# daemon NAME PROCESSOR: its HTTP port, once it is ready
daemon() {
	: >"$dir/$1.log"
	taskset -c "$2" ./kdserved --teacher "$model" --threads 1 --http 127.0.0.1:0 --socket '' 2>"$dir/$1.log" &
	pids+=($!)
	until grep -q ': teacher ' "$dir/$1.log"; do
		kill -0 "$!" || { cat "$dir/$1.log" >&2; exit 1; }
		sleep 0.1
	done
	sed -n 's|.*http://127.0.0.1:\([0-9]*\).*|\1|p' "$dir/$1.log" >"$dir/$1.port"
}

# proxy NAME PORT...: HAProxy before these servers, on a port of its own
proxy() {
	local name=$1 servers='' i=0 port
	shift
	port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
	for p; do servers+="\tserver s$((++i)) 127.0.0.1:$p\n"; done
	awk -v servers="$servers" -v port="$port" '
		/^frontend binary/ { exit }
		/^[[:space:]]*bind / { print "\tbind 127.0.0.1:" port; next }
		/^[[:space:]]*server / { if (!done++) printf servers; next }
		{ print }' "$top/etc/haproxy/haproxy.cfg" >"$dir/$name.cfg"
	haproxy -c -q -f "$dir/$name.cfg"
	haproxy -q -f "$dir/$name.cfg" &
	pids+=($!)
	echo "$port" >"$dir/$name.port"
}

# load PORT: answered per second
load() {
	python3 - "$1" "$seconds" <<'PY'
import http.client, json, random, sys, threading, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
answered, refused, end = [], [], time.monotonic() + seconds
def ask(seed):
    rng = random.Random((seed, time.time_ns()).__repr__())
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.monotonic() < end:
        body = json.dumps({"sequences": [{"tokens": [rng.randrange(250) for _ in range(120)]}], "top_k": 4,
                           "first": -1, "last": -1})
        c.request("POST", "/v1/score", body, {"Content-Type": "application/json"})
        reply = c.getresponse()
        reply.read()
        (answered if reply.status == 200 else refused).append(time.monotonic())
threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
began = time.monotonic()
for t in threads: t.start()
for t in threads: t.join()
if refused or not answered:
    sys.exit("%d requests were refused, %d answered" % (len(refused), len(answered)))
print("%.3f" % (len(answered) / (max(answered) - began)))
PY
}

daemon one 0
daemon two 1
proxy alone "$(cat "$dir/one.port")"
proxy both "$(cat "$dir/one.port")" "$(cat "$dir/two.port")"
sleep 3        # HAProxy's first looks at /ready
echo "one_per_s,two_per_s,ratio"
for ((i = 0; i < rounds; i++)); do
	if ((i % 2)); then b=$(load "$(cat "$dir/both.port")"); a=$(load "$(cat "$dir/alone.port")")
	else a=$(load "$(cat "$dir/alone.port")"); b=$(load "$(cat "$dir/both.port")"); fi
	awk -v a="$a" -v b="$b" 'BEGIN { printf "%s,%s,%.3f\n", a, b, b / a }'
done | tee "$dir/rounds"
sort -t, -k3n "$dir/rounds" | awk -F, '{ r[NR] = $3 } END { printf "median ratio %.3f of %d rounds\n", r[int((NR + 1) / 2)], NR }'
echo "load $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors"
