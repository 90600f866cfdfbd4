#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the server itself costs: server_overhead.py BUILD_FOLDER [TEACHER [REQUESTS [SECONDS]]], CSV on stdout. First requests that ask the
engine for nothing (bench_rpc), at 1 and 16 connections by each door. Then, given a teacher, REQUESTS of 512 tokens (top-64) by each door,
three under way all the time: the processor time of the daemon's threads, and how much of it is not the engine's. A machine busy with other
programs disturbs the clock, processor time of a thread hardly."""
import http.client
import json
import os
import random
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
import kdserved
from kdserved import ANSWER, DONE, SCORE, Daemon, score_body

AT_ONCE = 3


def thread_seconds(pid):
    """{name: processor seconds of all threads of that name}; what OpenMP starts bears the name of who started it."""
    seconds = {}
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/stat" % (pid, task)) as f:
            name, rest = f.read().split("(", 1)[1].rsplit(")", 1)
        with open("/proc/%d/task/%s/schedstat" % (pid, task)) as f:
            seconds[name] = seconds.get(name, 0) + int(f.read().split()[0]) / 1e9
    return seconds


def by_socket(daemon, sequences):
    with daemon.client(timeout=3600) as client:
        bodies = [score_body([s], top_k=64, values=1, own=True) for s in sequences]
        for i, body in enumerate(bodies):
            if i >= AT_ONCE:
                one_answer(client)
            client.send(SCORE, i + 1, body)
        for _ in range(min(AT_ONCE, len(bodies))):
            one_answer(client)


def one_answer(client):
    kind = ANSWER
    while kind == ANSWER:
        kind, _, body = client.receive()
    if kind != DONE:
        raise SystemExit("server_overhead.py: %r" % body)


def by_json(daemon, sequences):
    left, faults = list(sequences), []

    def work():
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=3600)
        while left and not faults:
            connection.request("POST", "/v1/score", json.dumps({"sequences": [{"tokens": left.pop()}], "top_k": 64, "own": True}),
                               {"Content-Type": "application/json"})
            reply = connection.getresponse()
            body = reply.read()
            if reply.status != 200:
                faults.append(body)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if faults:
        raise SystemExit("server_overhead.py: %r" % faults[0])


def share_row(door, ask, daemon, n_requests, rng):
    def some(n):
        return [[rng.randrange(1000, 40000) for _ in range(512)] for _ in range(n)]

    ask(daemon, some(1))                       # warms up
    sequences = some(n_requests)
    before = thread_seconds(daemon.process.pid)
    ask(daemon, sequences)
    after = thread_seconds(daemon.process.pid)
    used = {name: after[name] - before.get(name, 0) for name in after}
    engine, all_threads = used.pop("engine"), sum(after.values()) - sum(before.values())
    print("share,%s,%d,%.1f,%.2f,%.3f%%,%s,%.1f" % (door, n_requests, 1e3 * engine / n_requests, 1e3 * (all_threads - engine) / n_requests,
                                                  100 * (all_threads - engine) / all_threads,
                                                  " ".join("%s:%.2f" % (name, 1e3 * s / n_requests) for name, s in sorted(used.items()) if s > 0),
                                                  os.getloadavg()[0]), flush=True)


def main():
    if len(sys.argv) < 2:
        raise SystemExit("usage: server_overhead.py BUILD_FOLDER [TEACHER [REQUESTS [SECONDS]]]")
    build = os.path.realpath(sys.argv[1])
    kdserved.PROGRAM = os.path.join(build, "kdserved")
    n_requests = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    seconds = sys.argv[4] if len(sys.argv) > 4 else "5"
    print("empty,kind,connections,requests_s,p50_us,p99_us,server_us_a_request,client_us_a_request,load")
    with Daemon() as daemon:
        for kind in ("ping", "call", "http"):
            for n in ("1", "16"):
                address = str(daemon.port) if kind == "http" else "unix:" + daemon.socket_path
                row = subprocess.run([os.path.join(build, "tests/bench/bench_rpc"), address, kind, n, seconds, str(daemon.process.pid)],
                                     check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
                print("empty,%s,%.1f" % (row, os.getloadavg()[0]), flush=True)
    if len(sys.argv) < 3:
        return
    rng = random.Random(5)
    print("share,door,requests,engine_ms_a_request,other_ms_a_request,other_share,other_threads_ms,load")
    with Daemon(model=sys.argv[2], patience=600) as daemon:
        share_row("socket", by_socket, daemon, n_requests, rng)
        share_row("json", by_json, daemon, n_requests, rng)


if __name__ == "__main__":
    main()
