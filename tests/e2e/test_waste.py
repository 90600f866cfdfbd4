# SPDX-License-Identifier: Apache-2.0
"""Work that nobody waits for does not reach the forward pass, whatever the reason: counted exactly."""
import socket
import unittest

import kdserved
from kdserved import Daemon, ProtocolError, wait_until

N_BIG, N_LATE, N_LEFT, N_TAKEN_BACK, N_ALIVE = 800, 7, 11, 13, 5
FORWARD, DROPPED, WASTED = "kd_forward_sequences_total", "kd_sequences_dropped_total", "kd_sequences_wasted_total"


class Waste(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "512")
        cls.addClassCleanup(cls.daemon.stop)

    def count(self, *names):
        m = self.daemon.metrics()
        return [m[n] for n in names]

    def busy(self, client, seed):
        """A request that keeps the teacher busy for a while; returns once that has begun. Eight of its sequences fill a forward pass to
        the last token (no two begin alike), so that nothing that came later finds room in one of its own."""
        before, = self.count(FORWARD)
        request_id = client.start_score([[(seed + i) % 250 + 1, i // 250 + 1] * 128 for i in range(N_BIG)], top_k=1)
        wait_until(lambda: self.count(FORWARD)[0] > before, "the first forward pass")
        return request_id

    def leave(self):
        """A client that asks and goes; returns when the server has noticed."""
        with self.daemon.client() as c:
            c.start_score([[2, i + 1] for i in range(N_LEFT)], own=True)
            c.socket.shutdown(socket.SHUT_WR)
            self.assertRaises(kdserved.Closed, c.take, 1)

    def finish(self, client, ids):
        """{request id: (answers, code of the last error or None)}; a pong is an answer to its ping."""
        answers, codes, open_ids = dict.fromkeys(ids, 0), dict.fromkeys(ids), set(ids)
        while open_ids:
            kind, request_id, body = client.receive()
            if kind == kdserved.ERROR:
                e = ProtocolError(body)
                codes[request_id] = e.code
            if kind in (kdserved.ANSWER, kdserved.PONG):
                answers[request_id] += 1
            if kind in (kdserved.DONE, kdserved.PONG) or kind == kdserved.ERROR and e.index == kdserved.WHOLE:
                open_ids.remove(request_id)
        return {i: (answers[i], codes[i]) for i in ids}

    def attempt(self, seed):
        """None when the teacher was too quick for the question to be put."""
        before = self.count(FORWARD, DROPPED)
        with self.daemon.client() as big, self.daemon.client() as c:
            big_id = self.busy(big, seed)
            late = c.start_score([[1, i + 1] for i in range(N_LATE)], own=True, deadline_ms=1)
            alive = c.start_score([[4, i + 1] for i in range(N_ALIVE)], own=True)
            back = c.start_score([[3, i + 1] for i in range(N_TAKEN_BACK)], own=True)
            c.send(kdserved.CANCEL, back)
            c.send(kdserved.PING, 99)        # its answer says that the frames before it were read
            self.finish(c, [99])
            self.leave()
            quick = self.count(FORWARD)[0] - before[0] > N_BIG - 16
            self.assertEqual(self.finish(big, [big_id]), {big_id: (N_BIG, None)})
            ended = self.finish(c, [late, alive, back])
        wait_until(lambda: self.count("kd_reserved_requests") == [0], "everything to be given back")
        if quick:
            return None
        self.assertEqual(ended, {late: (0, "deadline"), alive: (N_ALIVE, None), back: (0, "cancelled")})
        return [a - b for a, b in zip(self.count(FORWARD, DROPPED), before)]

    def test_late_left_and_cancelled_work_is_dropped_before_the_forward_pass(self):
        for seed in range(5):
            counts = self.attempt(seed)
            if counts:
                self.assertEqual(counts, [N_BIG + N_ALIVE, N_LATE + N_LEFT + N_TAKEN_BACK])
                self.assertEqual(self.count(WASTED), [0])
                return
        self.skipTest("the teacher is too quick")

    def test_what_was_computed_for_nobody_is_counted(self):
        for seed in range(100, 105):
            with self.daemon.client() as c:
                request_id = self.busy(c, seed)
                c.send(kdserved.CANCEL, request_id)
                (answers, code), = self.finish(c, [request_id]).values()
            if (answers, code) != (N_BIG, None):         # else all was answered before we had a turn to say so
                break
        else:
            self.skipTest("the teacher is too quick")
        self.assertEqual(code, "cancelled")
        # The pass under way when the cancel came, of eight sequences, and no other; an answer on its way to the client may be either.
        self.assertLessEqual(self.count(WASTED)[0], 8)
        self.assertLess(answers, N_BIG)


if __name__ == "__main__":
    unittest.main(verbosity=2)
