# SPDX-License-Identifier: Apache-2.0
"""The Python client against a running daemon: the numbers of the other doors, pipelining, asyncio, errors, lost connections."""
import asyncio
import json
import os
import signal
import subprocess
import tempfile
import threading
import unittest

import support
support.need("numpy")

import numpy as np

import kdclient
import tiny_model
from kdclient import AsyncTeacher, KdError, Reconnect, Teacher
from kdserved import BUILD, Daemon, wait_until

TEXT = "the cat and the dog in the garden"
TOKENS = [5, 17, 200, 3, 99, 256, 258]


def sequences(n, length=20):
    return [[(7 * i + 3 * j) % 250 for j in range(length + i % 3)] for i in range(n)]


class Scores(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "512", "--max-sequences", "8")
        cls.teacher = Teacher.connect("unix:" + cls.daemon.socket_path)

    @classmethod
    def tearDownClass(cls):
        cls.teacher.close()
        cls.daemon.stop()

    def test_welcome_tells_the_limits(self):
        model = self.teacher.model()
        info = self.teacher.info
        self.assertEqual((info.fingerprint, info.vocab_size), (model["id"], model["vocab_size"]))
        self.assertEqual((info.max_tokens, info.max_sequences), (512, 8))
        self.assertLess(self.teacher.ping(), 60)
        self.assertTrue(self.teacher.status()["ready"])

    def test_numbers_are_those_of_http(self):
        ask = {"sequences": [{"tokens": TOKENS}], "top_k": 9, "temperatures": [1.0, 2.0], "own": True, "entropy": True, "values": "f32"}
        status, reply = self.daemon.post("/v1/score", ask)
        self.assertEqual(status, 200, reply)
        rows = self.teacher.score(TOKENS, top_k=9, temperatures=[2, 1.0, 2.0], own=True, entropy=True)
        self.assertEqual(rows.query.temperatures, (1.0, 2.0))
        for i, row in enumerate(reply["sequences"][0]["rows"]):
            self.assertEqual(rows.ids[i].tolist(), row["ids"])
            for name, here in (("logits", rows.logits[i]), ("lse", rows.lse[i]), ("entropy", rows.entropy[i])):
                np.testing.assert_array_equal(here, np.array(row[name], np.float32), name)
            if row["own_logit"] is None:
                self.assertTrue(np.isnan(rows.own_logit[i]) and i == len(TOKENS) - 1)
            else:
                self.assertEqual(rows.own_logit[i], np.float32(row["own_logit"]))

    def test_bytes_are_those_of_libkdclient(self):
        path = os.path.join(self.daemon.directory, "lines.jsonl")
        with open(path, "w") as f:
            f.write(json.dumps({"tokens": TOKENS}) + "\n")
        records = os.path.join(self.daemon.directory, "records")
        subprocess.run([os.path.join(BUILD, "kdctl"), "--server", "unix:" + self.daemon.socket_path, "score", "--top-k", "6",
                        "--values", "f16", "--records", records, path], check=True, stdout=subprocess.DEVNULL)
        with open(records, "rb") as f:
            theirs = f.read()
        question = kdclient.decode_record(theirs).query
        ours = self.teacher.score(TOKENS, top_k=6, values="f16", own=question.own, entropy=question.entropy,
                                  temperatures=question.temperatures)
        self.assertEqual(ours.record, theirs)

    def test_probabilities_over_the_whole_vocabulary_sum_to_one(self):
        rows = self.teacher.score(TOKENS, top_k=self.teacher.info.vocab_size, temperatures=[0.5, 1.0, 15.0], own=True, entropy=True)
        for t in (0.5, 1.0, 15.0):
            np.testing.assert_allclose(rows.probabilities(t).sum(1), 1, atol=1e-5)
            np.testing.assert_allclose(rows.tail_mass(t), 0, atol=1e-5)
        p = rows.probabilities()
        np.testing.assert_allclose(-(p * rows.logprobs()).sum(1), rows.entropy, rtol=1e-4)
        for i, own in enumerate(TOKENS[1:]):
            self.assertAlmostEqual(float(rows.own_logprobs()[i]), float(rows.logprobs()[i][rows.ids[i] == own][0]), places=5)
        few = self.teacher.score(TOKENS, top_k=5)
        np.testing.assert_array_equal(few.ids, rows.ids[:, :5])
        np.testing.assert_allclose(few.tail_mass(), p[:, 5:].sum(1), atol=1e-5)

    def test_rounded_values_stay_close(self):
        exact = self.teacher.score(TOKENS, top_k=20)
        rounded = self.teacher.score(TOKENS, top_k=20, values="f16")
        np.testing.assert_allclose(rounded.logits, exact.logits, atol=4e-3)
        np.testing.assert_array_equal(rounded.max_logit, exact.max_logit)
        np.testing.assert_array_equal(np.sort(rounded.ids, 1), np.sort(exact.ids, 1))

    def test_first_and_last_choose_rows(self):
        whole, part = self.teacher.score(TOKENS, top_k=3), self.teacher.score(TOKENS, top_k=3, first=-4, last=-2)
        np.testing.assert_array_equal(part.ids, whole.ids[3:6])
        self.assertEqual((part.query.first, part.query.last, len(part)), (3, 5, 3))

    def test_any_kind_of_integers_is_taken(self):
        expected = self.teacher.score(TOKENS, top_k=2).record
        for same in (tuple(TOKENS), np.array(TOKENS), np.array(TOKENS, np.uint16), memoryview(np.array(TOKENS, np.int32))):
            self.assertEqual(self.teacher.score(same, top_k=2).record, expected)
        several = self.teacher.score(np.array([TOKENS, TOKENS]), top_k=2)
        self.assertEqual([r.record for r in several], [expected] * 2)
        for bad, field in (([1.5], "tokens"), ([-1], "tokens"), ([[1], [2, -1]], "sequences[1].tokens"), ([], "sequences"), ([[[1]]],
                                                                                                                "sequences[0].tokens")):
            with self.assertRaises(KdError) as raised:
                self.teacher.score(bad, top_k=2)
            self.assertEqual((raised.exception.code, raised.exception.field), ("invalid", field))

    def test_more_sequences_than_a_request_takes_come_in_their_order(self):
        asked = sequences(50)
        for rows, tokens in zip(self.teacher.score(asked, top_k=1), asked):
            self.assertEqual(rows.tokens.tolist(), tokens)

    def test_a_wrong_sequence_is_named_as_the_caller_counts(self):
        asked = sequences(20)
        asked[13][4] = 999
        with self.assertRaises(KdError) as raised:
            self.teacher.score(asked, top_k=1)
        self.assertEqual((raised.exception.code, raised.exception.field), ("invalid", "sequences[13].tokens[4]"))
        self.assertIn("vocabulary", raised.exception.message)
        with self.assertRaises(KdError) as raised:
            self.teacher.score(TOKENS)
        self.assertEqual(raised.exception.code, "invalid")
        with self.assertRaises(TypeError):
            self.teacher.score(TOKENS, topk=3)
        self.assertEqual(len(self.teacher.score(TOKENS, top_k=1)), len(TOKENS))    # the connection is none the worse

    def test_answers_can_be_taken_as_they_come(self):
        pending = self.teacher.submit(sequences(30), top_k=2)
        seen = {index: rows.tokens.tolist() for index, rows in pending}
        self.assertEqual([seen[i] for i in range(30)], sequences(30))
        self.assertEqual(len(pending.result()), 30)
        self.assertTrue(pending.done)

    def test_many_requests_are_in_flight_at_once(self):
        pending = [self.teacher.submit(sequences(9, 30 + i), top_k=3) for i in range(40)]
        for i, one in enumerate(pending):
            self.assertEqual([len(r.tokens) for r in one.result(60)], [len(s) for s in sequences(9, 30 + i)])

    def test_threads_share_a_teacher(self):
        wrong = []

        def ask(i):
            for rows, tokens in zip(self.teacher.score(sequences(5, 10 + i), top_k=2), sequences(5, 10 + i)):
                if rows.tokens.tolist() != tokens:
                    wrong.append(i)
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(wrong, [])

    def test_a_question_can_be_taken_back(self):
        pending = self.teacher.submit(sequences(200, 400), top_k=50, store=False)
        pending.cancel()
        with self.assertRaises(KdError) as raised:
            pending.result()
        self.assertEqual(raised.exception.code, "cancelled")
        self.assertEqual(len(self.teacher.score(TOKENS, top_k=1)), len(TOKENS))
        wait_until(lambda: self.daemon.metrics().get('kd_requests_in_flight{door="socket"}', 0) == 0, "the cancelled requests to end")

    def test_a_deadline_is_kept(self):
        with self.assertRaises(KdError) as raised:
            self.teacher.score(sequences(300, 400), top_k=50, deadline=0.001)
        self.assertEqual(raised.exception.code, "deadline")
        pending = self.teacher.submit(sequences(30, 400), top_k=50)
        with self.assertRaises(KdError) as raised:
            pending.result(timeout=0)
        self.assertEqual(raised.exception.code, "deadline")
        pending.cancel()

    def test_text_goes_there_and_back(self):
        found = self.teacher.tokenize(TEXT)
        self.assertEqual("".join(TEXT[a:b] for a, b in found.offsets.tolist()), TEXT)
        self.assertEqual(self.teacher.detokenize(found.tokens), TEXT)
        with self.assertRaises(KdError) as raised:
            self.teacher.resource("GET", "/v1/nowhere")
        self.assertEqual(raised.exception.code, "not_found")
        self.assertEqual(self.teacher.call("GET", "/v1/nowhere")[0], 404)

    def test_asyncio_has_the_same(self):
        async def main():
            async with await AsyncTeacher.connect("unix:" + self.daemon.socket_path) as teacher:
                alone, several = await asyncio.gather(teacher.score(TOKENS, top_k=4), teacher.score(sequences(20), top_k=4))
                self.assertEqual(alone.record, self.teacher.score(TOKENS, top_k=4).record)
                self.assertEqual([r.tokens.tolist() for r in several], sequences(20))
                seen = set()
                async for index, rows in teacher.submit(sequences(20), top_k=1):
                    seen.add(index)
                self.assertEqual(seen, set(range(20)))
                self.assertEqual(await teacher.detokenize((await teacher.tokenize(TEXT)).tokens), TEXT)
                task = asyncio.ensure_future(teacher.score(sequences(300, 400), top_k=50, store=False))
                await asyncio.sleep(0.05)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                self.assertGreater(await teacher.ping(), 0)
        asyncio.run(main())

    def test_addresses_and_fingerprints_are_checked(self):
        for address in ("", "unix:", "tcp:host", "tcp:host:0", "tcp:host:70000", "http://x:1"):
            with self.assertRaises(KdError, msg=address) as raised:
                Teacher.connect(address)
            self.assertEqual((raised.exception.code, raised.exception.field), ("invalid", "address"))
        with self.assertRaises(KdError) as raised:
            Teacher.connect("unix:/nonexistent/socket")
        self.assertEqual(raised.exception.code, "unavailable")
        with self.assertRaises(KdError) as raised:
            Teacher.connect("unix:" + self.daemon.socket_path, expect_fingerprint="00" * 31 + "01")
        self.assertEqual(raised.exception.code, "conflict")
        with Teacher.connect("unix:" + self.daemon.socket_path, expect_fingerprint=self.teacher.info.fingerprint) as same:
            self.assertEqual(same.info, self.teacher.info)

    def test_a_forked_child_is_told_to_connect_again(self):
        pid = os.fork()
        if pid == 0:
            try:
                self.teacher.score(TOKENS, top_k=1)
                os._exit(1)
            except KdError as error:
                os._exit(0 if error.code == "unavailable" else 2)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertEqual(len(self.teacher.score(TOKENS, top_k=1)), len(TOKENS))


class Life(unittest.TestCase):
    def test_a_second_question_is_answered_from_the_store(self):
        with tempfile.TemporaryDirectory() as store, Daemon("--store", store) as daemon:
            with Teacher.connect("unix:" + daemon.socket_path) as teacher:
                one = teacher.score(TOKENS, top_k=3, durable=True)
                two = teacher.score(TOKENS, top_k=3)
                self.assertEqual((one.cached, two.cached, one.record), (False, True, two.record))
                self.assertFalse(teacher.score(TOKENS, top_k=3, store=False).cached)

    def test_a_teacher_among_several_is_found_by_name_and_fingerprint(self):
        with tempfile.TemporaryDirectory() as folder:
            second = os.path.join(folder, "second")
            tiny_model.write(second, seed=2)
            with Daemon("--teacher", "other=" + second) as daemon:
                address = "unix:" + daemon.socket_path
                ids = {t["name"]: t["id"] for t in daemon.get("/v1/model")[1]["teachers"]}
                with Teacher.connect(address) as first, Teacher.connect(address, teacher="other") as other, \
                        Teacher.connect(address, expect_fingerprint=ids["other"]) as same, \
                        Teacher.connect(address, teacher="model") as named:
                    self.assertEqual([t.info.fingerprint for t in (first, named, other, same)], [ids["model"]] * 2 + [ids["other"]] * 2)
                    self.assertNotEqual(first.score(TOKENS, top_k=3).record, other.score(TOKENS, top_k=3).record)
                    self.assertEqual(same.score(TOKENS, top_k=3).record, other.score(TOKENS, top_k=3).record)
                    self.assertFalse(np.array_equal(first.weights("head"), other.weights("head")))
                with self.assertRaises(KdError) as raised:
                    Teacher.connect(address, teacher="nobody")
                self.assertEqual((raised.exception.code, raised.exception.field), ("not_found", "teacher"))

    def test_a_lost_connection_is_an_error_of_everything_after(self):
        daemon = Daemon()
        teacher = Teacher.connect("unix:" + daemon.socket_path)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.stop(expect=-signal.SIGKILL)
        for _ in range(2):
            with self.assertRaises(KdError) as raised:
                teacher.score(TOKENS, top_k=1)
            self.assertEqual(raised.exception.code, "unavailable")
        teacher.close()
        with self.assertRaises(KdError):
            teacher.score(TOKENS, top_k=1)

    def test_with_a_policy_a_question_outlives_the_server(self):
        first = Daemon()
        policy = Reconnect(attempts=200, first_delay=0.05, longest_delay=0.2)
        with Teacher.connect("unix:" + first.socket_path, reconnect=policy) as teacher:
            before = teacher.score(TOKENS, top_k=3)
            pending = teacher.submit(sequences(400, 300), top_k=50)
            next(iter(pending))
            first.process.send_signal(signal.SIGKILL)
            first.wait_exit()
            with Daemon(directory=first.directory, model=first.model):
                self.assertEqual([r.tokens.tolist() for r in pending.result(120)], sequences(400, 300))
                self.assertEqual(teacher.score(TOKENS, top_k=3).record, before.record)
                self.assertEqual(teacher.model()["id"], teacher.info.fingerprint)
        first.stop(expect=-signal.SIGKILL)


if __name__ == "__main__":
    support.main()
