# SPDX-License-Identifier: Apache-2.0
"""Generation through the Python client: greedy steps and seeds, streams, HTTP's samples, stops, limits."""
import asyncio
import re
import unittest

import support
support.need("numpy")

import numpy as np

from kdclient import AsyncTeacher, KdError, Teacher
from kdserved import Daemon, wait_until

PROMPT = [5, 17, 200, 3, 99]


class Generation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "256")
        cls.teacher = Teacher.connect("unix:" + cls.daemon.socket_path)

    @classmethod
    def tearDownClass(cls):
        cls.teacher.close()
        cls.daemon.stop()

    def test_greedy_takes_the_largest_logit_each_time(self):
        sample, = self.teacher.generate(PROMPT, max_tokens=12, temperature=0, ignore_eos=True, rows=3)
        self.assertEqual((len(sample.tokens), sample.finish, sample.ids.shape, sample.prompt, sample.sample), (12, "length", (12, 3), 0, 0))
        rows = self.teacher.score(PROMPT + sample.tokens.tolist(), top_k=3, own=True, first=len(PROMPT) - 1, last=-2)
        np.testing.assert_array_equal(rows.ids[:, 0], sample.tokens)
        np.testing.assert_array_equal(rows.ids, sample.ids)
        np.testing.assert_array_equal(rows.logits, sample.logits)
        np.testing.assert_array_equal(rows.lse[:, 0], sample.lse)
        np.testing.assert_array_equal(rows.own_logprobs(), sample.logprobs)

    def test_samples_are_their_seeds_and_those_of_http(self):
        asked = {"n": 3, "max_tokens": 10, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 11, "ignore_eos": True}
        ours = self.teacher.generate([PROMPT, [1, 2]], **asked)
        self.assertEqual([(s.prompt, s.sample) for s in ours], [(p, i) for p in range(2) for i in range(3)])
        status, reply = self.daemon.post("/v1/generate", dict(asked, prompts=[{"tokens": PROMPT}, {"tokens": [1, 2]}], logprobs=True))
        self.assertEqual(status, 200, reply)
        for mine, theirs in zip(ours, reply["sequences"]):
            # U+FFFD stands for a broken sequence, or for each of its bytes
            texts = [re.sub("\ufffd+", "\ufffd", text) for text in (mine.text, theirs["text"])]
            self.assertEqual((mine.tokens.tolist(), texts[0], mine.finish), (theirs["tokens"], texts[1], theirs["finish"]))
            np.testing.assert_array_equal(mine.logprobs, np.array(theirs["logprobs"], np.float32))
            np.testing.assert_array_equal(mine.sampled_logprobs, np.array(theirs["sampled_logprobs"], np.float32))
        alone = self.teacher.generate(PROMPT, **dict(asked, n=1, first_sample=2))[0]
        self.assertEqual(alone.tokens.tolist(), ours[2].tokens.tolist())
        drawn = self.teacher.generate(PROMPT, max_tokens=10)[0]
        self.assertEqual(self.teacher.generate(PROMPT, max_tokens=10, seed=drawn.seed)[0].tokens.tolist(), drawn.tokens.tolist())

    def test_a_stream_adds_up_to_the_whole(self):
        asked = {"n": 2, "max_tokens": 30, "seed": 3, "ignore_eos": True, "rows": 2}
        whole = self.teacher.generate(["the cat", "in the"], **asked)
        pieces = list(self.teacher.stream(["the cat", "in the"], **asked))
        self.assertGreaterEqual(len(pieces), len(whole))    # frames of a quick teacher may be one
        for sample in whole:
            mine = [p for p in pieces if (p.prompt, p.sample) == (sample.prompt, sample.sample)]
            self.assertEqual([p.finish for p in mine[:-1]], [None] * (len(mine) - 1))
            self.assertEqual("".join(p.text for p in mine), sample.text)
            for name in ("tokens", "logprobs", "sampled_logprobs", "lse", "ids", "logits"):
                np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in mine]), getattr(sample, name))
            self.assertEqual((mine[-1].finish, mine[-1].seed), (sample.finish, 3))

    def test_a_stream_may_end_on_the_thread_of_the_loop(self):
        """As the garbage collector may end one: nothing waits for the loop there."""
        async def end(stream):
            stream.close()
        stream = self.teacher.stream(PROMPT, max_tokens=200, ignore_eos=True)
        next(stream)
        self.teacher._thread.run(end(stream), 20)
        self.assertGreater(self.teacher.ping(), 0)

    def test_stops_end_an_answer(self):
        whole = self.teacher.generate(PROMPT, max_tokens=40, seed=5, ignore_eos=True)[0]
        by_id = self.teacher.generate(PROMPT, max_tokens=40, seed=5, ignore_eos=True, stop_ids=[int(whole.tokens[6])])[0]
        self.assertEqual((by_id.finish, by_id.stop_id), ("stop", whole.tokens[6]))
        self.assertEqual(by_id.tokens.tolist(), whole.tokens[:len(by_id.tokens)].tolist())
        cut = whole.text[4:6]
        by_text = self.teacher.generate(PROMPT, max_tokens=40, seed=5, ignore_eos=True, stop=["never there", cut])[0]
        self.assertEqual((by_text.finish, by_text.stop, by_text.text), ("stop", cut, whole.text[:whole.text.index(cut)]))
        forced = self.teacher.generate(PROMPT, max_tokens=3, forced=[7, 8], temperature=0)[0]
        self.assertEqual(forced.tokens[:2].tolist(), [7, 8])

    def test_faults_are_named(self):
        for wrong, field in ((dict(max_tokens=1000), "max_tokens"), (dict(top_p=2.0), "top_p"), (dict(stop=["x" * 257]), "stop"),
                             (dict(stop_ids=[9999]), "stop_ids[0]"), (dict(n=0), "n"), (dict(n=-1), "generate")):
            with self.assertRaises(KdError, msg=wrong) as raised:
                self.teacher.generate(PROMPT, **wrong)
            self.assertIn(raised.exception.code, ("invalid", "too_large"))
            self.assertEqual(raised.exception.field, field)
        with self.assertRaises(TypeError):
            self.teacher.generate(PROMPT, tokens=3)
        self.assertEqual(len(self.teacher.generate(PROMPT, max_tokens=2, ignore_eos=True)[0].tokens), 2)

    def test_leaving_a_stream_ends_the_work(self):
        for piece in self.teacher.stream(PROMPT, max_tokens=200, ignore_eos=True, n=4):
            break
        wait_until(lambda: self.daemon.metrics().get('kd_requests_in_flight{door="socket"}', 0) == 0, "the samples to end")

    def test_asyncio_streams_too(self):
        async def main():
            async with await AsyncTeacher.connect("unix:" + self.daemon.socket_path) as teacher:
                text = "".join([piece.text async for piece in teacher.stream("the cat", max_tokens=20, seed=1)])
                whole, others = await asyncio.gather(teacher.generate("the cat", max_tokens=20, seed=1), teacher.score(PROMPT, top_k=1))
                self.assertEqual(text, whole[0].text)
                self.assertEqual(len(others), len(PROMPT))
        asyncio.run(main())


if __name__ == "__main__":
    support.main()
