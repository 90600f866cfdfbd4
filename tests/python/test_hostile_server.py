# SPDX-License-Identifier: Apache-2.0
"""The Python client against servers that break the protocol: one clear error, at once, and no thread left waiting."""
import asyncio
import gc
import os
import socket
import struct
import tempfile
import threading
import time
import unittest

import support
support.need("numpy")

from kdclient import AsyncTeacher, KdError, Reconnect, Teacher, frame
from kdclient.frame import Kind
from kdclient.teacher import _Thread
from test_codec import man_bytes

TEACHER = bytes(range(32))
RECORD = man_bytes("kdserved-record.5", "Row 2: ids 0 and 9")    # of tokens 3, 1, 4 by TEACHER
SHORT_RECORD = RECORD[:6] + b"\1\0" + RECORD[8:16] + RECORD[48:100] + RECORD[136:]    # 24 bytes of query, 12 of tokens
ASK = {"top_k": 2, "own": True, "values": "f16", "first": 1}


def welcome(credits=4, vocabulary=10):
    body = struct.pack("<HH32s13I", frame.VERSION, 0, TEACHER, 100, 10, 8, 8, 8, vocabulary, 4, 8, 8, 8, 8, 1 << 20, credits)
    return frame.encode(Kind.WELCOME, 0, body)


def answer(request_id, index=0, record=RECORD, flags=0):
    return frame.encode(Kind.ANSWER, request_id, struct.pack("<II", index, flags) + record)


def error(request_id, code, index=frame.WHOLE_REQUEST, field=b""):
    body = struct.pack("<IBBH", index, len(code), len(field), 2) + code + field + b"no"
    return frame.encode(Kind.ERROR, request_id, body)


class Server:
    """Runs script(server) for each connection; leaves what it did not expect in `seen`."""

    def __init__(self, script):
        self.folder = tempfile.TemporaryDirectory()
        self.address = "unix:" + os.path.join(self.folder.name, "s")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address[5:])
        self.listener.listen()
        self.script, self.seen = script, []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                self.connection, _ = self.listener.accept()
            except OSError:
                return
            with self.connection:
                self.connection.settimeout(20)
                try:
                    self.receive()    # hello
                    self.script(self)
                except OSError as broken:
                    self.seen.append(broken)

    def receive(self):
        header = frame.decode_header(self.take(frame.HEADER_BYTES), 1 << 20)
        return Kind(header.kind), header.request_id, self.take(header.body_bytes)

    def take(self, n):
        data = b""
        while len(data) < n:
            piece = self.connection.recv(n - len(data))
            if not piece:
                raise ConnectionError("the client left")
            data += piece
        return data

    def send(self, *frames):
        self.connection.sendall(b"".join(frames))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(20)
        self.folder.cleanup()


class Greeting(unittest.TestCase):
    def refused(self, code, *frames, **more):
        with Server(lambda s: (s.send(*frames), more or s.take(1))) as server:
            with self.assertRaises(KdError) as raised:
                Teacher.connect(server.address, connect_timeout=more.get("patience", 20))
            self.assertEqual(raised.exception.code, code, raised.exception)

    def test_a_server_of_another_kind(self):
        self.refused("corrupt", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    def test_a_server_that_hangs_up(self):
        self.refused("unavailable", patience=20)

    def test_a_server_that_says_nothing(self):
        with Server(lambda s: s.take(1)) as server, self.assertRaises(KdError) as raised:
            Teacher.connect(server.address, connect_timeout=0.1)
        self.assertEqual(raised.exception.code, "deadline")

    def test_refusals_are_passed_on(self):
        for code in (b"unauthorized", b"unavailable", b"conflict"):
            self.refused(code.decode(), error(0, code))

    def test_a_damaged_welcome(self):
        for at in (0, 10, 30, 40, 60):
            data = bytearray(welcome())
            data[at] ^= 4
            self.refused("corrupt", bytes(data))

    def test_impossible_limits(self):
        self.refused("corrupt", welcome(credits=0))
        self.refused("corrupt", welcome(vocabulary=0))
        self.refused("corrupt", welcome(vocabulary=(1 << 24) + 1))

    def test_a_long_body_before_the_welcome(self):
        self.refused("too_large", frame.encode(Kind.WELCOME, 0, bytes(2000)))

    def test_something_else_than_a_welcome(self):
        self.refused("corrupt", frame.encode(Kind.DONE, 0))


class Requests(unittest.TestCase):
    def lost(self, code, *frames_of, sequences=([3, 1, 4],), **more):
        """The request ends with the code, and the connection with it."""
        def script(server):
            server.send(welcome())
            kind, request_id, _ = server.receive()
            assert kind == Kind.SCORE
            server.send(*[f(request_id) for f in frames_of])
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address, **more) as teacher:
            for _ in range(2):
                with self.assertRaises(KdError) as raised:
                    teacher.score(list(sequences), **ASK)
                self.assertEqual(raised.exception.code, code, raised.exception)

    def test_the_record_of_the_manual_answers_its_question(self):
        def script(server):
            server.send(welcome())
            _, request_id, _ = server.receive()
            server.send(answer(request_id, flags=1), frame.encode(Kind.DONE, request_id))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            rows = teacher.score([3, 1, 4], **ASK)
            self.assertEqual((rows.ids.tolist(), rows.cached), ([[7, 4], [0, 9]], True))

    def test_an_answer_to_another_question(self):
        def script(server):
            server.send(welcome())
            while True:
                _, request_id, _ = server.receive()
                server.send(answer(request_id), frame.encode(Kind.DONE, request_id))
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            for tokens, ask in (([3, 1, 5], ASK), ([3, 1, 4], dict(ASK, top_k=3)), ([3, 1, 4], dict(ASK, first=0))):
                with self.assertRaises(KdError) as raised:
                    teacher.score(tokens, **ask)
                self.assertEqual((raised.exception.code, raised.exception.field), ("corrupt", "sequences[0]"))
            self.assertEqual(len(teacher.score([3, 1, 4], **ASK)), 2)

    def test_a_short_answer_is_completed_only_with_its_own_question(self):
        def script(server):
            server.send(welcome())
            while True:
                _, request_id, _ = server.receive()
                server.send(answer(request_id, record=SHORT_RECORD, flags=2), frame.encode(Kind.DONE, request_id))
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            self.assertEqual(teacher.score([3, 1, 4], **ASK).record, RECORD)
            for tokens, ask in (([3, 1, 5], ASK), ([3, 1, 4], dict(ASK, top_k=3)), ([3, 1, 4, 1], ASK)):
                with self.assertRaises(KdError) as raised:
                    teacher.score(tokens, **ask)
                self.assertEqual(raised.exception.code, "corrupt")

    def test_answers_that_nobody_awaits(self):
        self.lost("corrupt", lambda i: answer(i + 1))
        self.lost("corrupt", lambda i: answer(i, index=1))
        self.lost("corrupt", lambda i: answer(i), answer, sequences=([3, 1, 4], [3, 1, 4]))
        self.lost("corrupt", lambda i: answer(i, flags=4))

    def test_the_end_before_all_answers(self):
        self.lost("corrupt", lambda i: frame.encode(Kind.DONE, i))

    def test_frames_that_a_server_does_not_send(self):
        for kind in (Kind.SCORE, Kind.CALL, Kind.REPLY, Kind.WELCOME, Kind.CANCEL):
            self.lost("corrupt", lambda i, kind=kind: frame.encode(kind, i, b""))

    def test_a_damaged_answer(self):
        def damaged(request_id):
            data = bytearray(answer(request_id))
            data[150] ^= 1
            return bytes(data)
        self.lost("corrupt", damaged)

    def test_a_body_over_the_limit(self):
        self.lost("too_large", lambda i: answer(i, record=bytes(5000)), max_body_bytes=4000)

    def test_an_error_of_the_connection(self):
        self.lost("internal", lambda i: error(0, b"internal"))

    def test_an_error_of_one_sequence_names_it(self):
        def script(server):
            server.send(welcome())
            for first in (0, 8):
                _, request_id, _ = server.receive()
                n = min(8, 11 - first)
                for i in range(n):
                    server.send(error(request_id, b"internal", i) if first + i == 9 else answer(request_id, i))
                server.send(frame.encode(Kind.DONE, request_id))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            with self.assertRaises(KdError) as raised:
                teacher.score([[3, 1, 4]] * 11, **ASK)
            self.assertEqual((raised.exception.code, raised.exception.field), ("internal", "sequences[9]"))

    def test_goaway_lets_requests_in_flight_finish_and_refuses_new_ones(self):
        def script(server):
            server.send(welcome())
            _, request_id, _ = server.receive()
            server.send(frame.encode(Kind.GOAWAY), frame.encode(Kind.PING, 5, b"hm"), answer(request_id),
                        frame.encode(Kind.DONE, request_id))
            server.seen.append(server.receive())
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            self.assertEqual(len(teacher.score([3, 1, 4], **ASK)), 2)
            with self.assertRaises(KdError) as raised:
                teacher.score([3, 1, 4], **ASK)
            self.assertEqual(raised.exception.code, "unavailable")
        self.assertEqual(server.seen[0], (Kind.PONG, 5, b"hm"))

    def test_silence_is_broken_by_a_ping_and_then_ends_the_connection(self):
        def script(server):
            server.send(welcome())
            for _ in range(2):
                server.seen.append(server.receive()[0])
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address, timeout=0.1) as teacher:
            with self.assertRaises(KdError) as raised:
                teacher.score([3, 1, 4], **ASK)
            self.assertEqual(raised.exception.code, "unavailable")
            self.assertIn("ping", raised.exception.message)
        self.assertEqual(server.seen[:2], [Kind.SCORE, Kind.PING])

    def pings(self, server):
        """Asks whether the client lives, until that has had enough of it."""
        try:
            while True:
                server.send(frame.encode(Kind.PING, 5, b"hm"))
                time.sleep(0.01)
        except OSError:
            pass

    def test_pings_are_no_answers(self):
        def script(server):
            server.send(welcome())
            self.assertEqual(server.receive()[0], Kind.SCORE)
            self.pings(server)
        with Server(script) as server, Teacher.connect(server.address, timeout=0.2) as teacher:
            begin = time.monotonic()
            with self.assertRaises(KdError) as raised:
                teacher.score([3, 1, 4], **ASK)
            self.assertEqual(raised.exception.code, "unavailable")
            self.assertLess(time.monotonic() - begin, 60)

    def test_a_deadline_holds_for_a_server_that_only_returns_pings(self):
        def script(server):
            server.send(welcome())
            while True:
                kind, request_id, body = server.receive()
                server.seen.append(kind)
                if kind == Kind.PING:
                    server.send(frame.encode(Kind.PONG, request_id, body))
        with Server(script) as server, Teacher.connect(server.address, timeout=1) as teacher:      # what a pong may take on a busy machine
            with self.assertRaises(KdError) as raised:
                teacher.score([3, 1, 4], deadline=2.5, **ASK)
            self.assertEqual(raised.exception.code, "deadline")
            self.assertGreater(teacher.ping(), 0)        # the connection stands: another may be answered
        self.assertIn(Kind.CANCEL, server.seen)

    def test_pongs_nobody_reads_do_not_pile_up(self):
        async def run():
            def script(server):
                server.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                server.send(welcome())
                server.receive()
                for _ in range(20000):        # 64 bytes and a header each: 2 MB, more than sockets hold
                    server.send(frame.encode(Kind.PING, 5, bytes(64)))
                server.seen.append("sent")
                server.take(1)
            with Server(script) as server:
                teacher = await AsyncTeacher.connect(server.address, timeout=None)
                pending = teacher.submit([3, 1, 4], **ASK)
                while "sent" not in server.seen or len(teacher._link._pong_ends) < 16:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                most = teacher._link._transport.get_write_buffer_size()
                pending.cancel()
                await teacher.close()
                return most
        self.assertLessEqual(asyncio.run(run()), 17 * (frame.HEADER_BYTES + 64))

    def test_a_busy_server_is_asked_again_where_the_policy_says_so(self):
        def script(server):
            server.send(welcome())
            for turn in range(3):
                _, request_id, _ = server.receive()
                server.send(error(request_id, b"overloaded") if turn < 2 else answer(request_id) + frame.encode(Kind.DONE, request_id))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address, reconnect=Reconnect(2, 0.01)) as teacher:
            self.assertEqual(len(teacher.score([3, 1, 4], **ASK)), 2)
        with Server(script) as server, Teacher.connect(server.address, reconnect=Reconnect(1, 0.01)) as teacher:
            with self.assertRaises(KdError) as raised:
                teacher.score([3, 1, 4], **ASK)
            self.assertEqual(raised.exception.code, "overloaded")

    def test_late_answers_to_a_batch_given_up_count_once(self):
        def script(server):
            server.send(welcome())
            first, second = (server.receive()[1] for _ in range(2))
            server.send(error(second, b"overloaded"))
            server.receive()    # that the first is cancelled
            third, fourth = (server.receive()[1] for _ in range(2))
            for request_id, n in ((first, 8), (third, 8), (fourth, 1)):
                server.send(*[answer(request_id, i) for i in range(n)], frame.encode(Kind.DONE, request_id))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address, reconnect=Reconnect(1, 0.01)) as teacher:
            arrived = [index for index, _ in teacher.submit([[3, 1, 4]] * 9, **ASK)]
            self.assertEqual(sorted(arrived), list(range(9)))

    def test_who_could_not_listen_asks_before_giving_up(self):
        def script(server):
            server.send(welcome())
            request_id = server.receive()[1]
            kind, ping, body = server.receive()
            server.seen.append(kind)    # before the answer: the test reads it as soon as it has that
            server.send(frame.encode(Kind.PONG, ping, body), answer(request_id), frame.encode(Kind.DONE, request_id))
            server.take(1)

        async def ask(address):
            async with await AsyncTeacher.connect(address, timeout=1) as teacher:      # in which the server must answer
                pending = teacher.submit([3, 1, 4], **ASK)
                await asyncio.sleep(0.02)    # it is sent
                time.sleep(2.5)    # a training step on the loop's own thread
                return await pending.result()
        with Server(script) as server:
            self.assertEqual(len(asyncio.run(ask(server.address))), 1)
            self.assertEqual(server.seen[0], Kind.PING)

    def test_closing_ends_every_wait(self):
        def script(server):
            server.send(welcome(credits=1))
            server.take(1 << 20)
        ends = []

        def ask(teacher):
            try:
                teacher.model()
            except KdError as ended:
                ends.append(ended.code)
        with Server(script) as server:
            teacher = Teacher.connect(server.address)
            threads = [threading.Thread(target=ask, args=(teacher,), daemon=True) for _ in range(12)]
            for thread in threads:
                thread.start()
            time.sleep(0.3)    # one has the credit, the others wait for it
            teacher.close()
            for thread in threads:
                thread.join(60)
            self.assertEqual(ends, ["unavailable"] * len(threads))

    def test_a_request_too_long_for_the_server_is_not_sent(self):
        """A server hangs up on it, and on whoever else has asked."""
        def script(server):
            server.send(welcome(credits=1))
            body = b'{"id":"x"}'
            server.send(frame.encode(Kind.REPLY, server.receive()[1], struct.pack("<II", 200, len(body)) + body))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            for ask in (lambda: teacher.tokenize("a" * (1 << 20)), lambda: teacher.generate([[1] * (1 << 18)])):
                with self.assertRaises(KdError) as raised:
                    ask()
                self.assertEqual(raised.exception.code, "too_large")
            self.assertEqual(teacher.model(), {"id": "x"})

    def test_errors_of_a_lost_connection_keep_nothing(self):
        async def ask(address):
            teacher = await AsyncTeacher.connect(address)
            await asyncio.wait_for(teacher._link.closed.wait(), 20)
            ends = await asyncio.gather(*(teacher.model() for _ in range(3)), return_exceptions=True)
            await teacher.close()
            return ends
        with Server(lambda s: s.send(welcome())) as server:
            ends = asyncio.run(ask(server.address))
        self.assertEqual([end.code for end in ends], ["unavailable"] * 3)
        self.assertEqual(len({id(end) for end in ends}), 3)

    def test_closing_ends_what_waits_on_a_connection_that_drains(self):
        held = []

        def script(server):
            server.send(welcome())
            request_id = server.receive()[1]
            if not held:
                held.append(server.connection.dup())    # stays open when this one is left for the next
                server.send(frame.encode(Kind.GOAWAY))
                return
            server.send(frame.encode(Kind.REPLY, request_id, struct.pack("<II", 200, 2) + b"{}"))
            server.take(1)

        async def ask(address):
            teacher = await AsyncTeacher.connect(address, reconnect=Reconnect(5, 0.01))
            first = asyncio.ensure_future(teacher.model())
            while not teacher._link.draining:
                await asyncio.sleep(0.01)
            second = await asyncio.wait_for(teacher.model(), 20)
            self.assertFalse(first.done())
            await teacher.close()
            return second, (await asyncio.wait_for(asyncio.gather(first, return_exceptions=True), 20))[0]
        with Server(script) as server:
            second, first = asyncio.run(ask(server.address))
            held[0].close()
        self.assertEqual((second, first.code), ({}, "unavailable"))

    def test_a_refused_ping_gives_no_credit_back(self):
        def script(server):
            server.send(welcome(credits=1))
            server.send(error(server.receive()[1], b"overloaded"))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            with self.assertRaises(KdError) as raised:
                teacher.ping()
            self.assertEqual((raised.exception.code, teacher._teacher._link.credits._value), ("overloaded", 1))

    def test_a_generation_has_an_end_too(self):
        """For a server that answers pings and nothing else."""
        def script(server):
            server.send(welcome())
            while True:
                kind, request_id, body = server.receive()
                if kind == Kind.PING:
                    server.send(frame.encode(Kind.PONG, request_id, body))
        with Server(script) as server, Teacher.connect(server.address, timeout=1) as teacher:
            for ask in (lambda: teacher.generate([3], deadline=0.5), lambda: list(teacher.stream([3], deadline=0.5))):
                with self.assertRaises(KdError) as raised:
                    ask()
                self.assertEqual(raised.exception.code, "deadline")

    def test_replies_of_another_form_are_corrupt(self):
        replies = (b"[]", b"{}", b'{"rows":1,"width":0,"values":{"dtype":"f32","shape":[1,1],"data":"AAAAAA=="}}',
                   b'{"rows":1,"width":1,"values":{"dtype":"f64","shape":[1,1],"data":"AAAAAA=="}}',
                   b'{"rows":1,"width":1,"values":{"dtype":"f32","shape":[1,1],"data":"AA=="}}')

        def script(server):
            server.send(welcome())
            for body in replies * 3:
                server.send(frame.encode(Kind.REPLY, server.receive()[1], struct.pack("<II", 200, len(body)) + body))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            for ask in (lambda: teacher.weights("head"), lambda: teacher.tokenize("a"), lambda: teacher.detokenize([1])):
                for reply in replies:
                    with self.assertRaises(KdError, msg=reply) as raised:
                        ask()
                    self.assertEqual(raised.exception.code, "corrupt", reply)

    def test_a_teacher_that_is_dropped_leaves(self):
        gone = threading.Event()

        def script(server):
            server.send(welcome())
            try:
                server.take(1)
            except ConnectionError:
                gone.set()
        with Server(script) as server:
            gc.disable()    # the cyclic collector is not waited for
            try:
                teacher = Teacher.connect(server.address)
                del teacher
                self.assertTrue(gone.wait(20))
            finally:
                gc.enable()

    def test_deadlines_are_numbers(self):
        with Server(lambda s: (s.send(welcome()), s.take(1))) as server, Teacher.connect(server.address) as teacher:
            for deadline in (float("inf"), float("nan")):
                for ask in (lambda: teacher.score([3, 1, 4], deadline=deadline, **ASK), lambda: teacher.generate([3], deadline=deadline)):
                    with self.assertRaises(KdError) as raised:
                        ask()
                    self.assertEqual(raised.exception.code, "invalid")

    def test_attempts_without_end_have_delays(self):
        self.assertEqual(Reconnect(10**6).delay(10**5), 10.0)

    def test_what_ends_with_the_loop_is_told(self):
        async def ends_with_the_loop():
            asyncio.get_running_loop().stop()
            return 7
        thread = _Thread()
        self.assertEqual(thread.run(ends_with_the_loop(), 10), 7)
        with self.assertRaises(KdError) as raised:
            thread.run(ends_with_the_loop(), 10)
        self.assertEqual(raised.exception.code, "unavailable")

    def test_what_was_asked_just_before_the_end_is_told(self):
        async def ask(address):
            async with await AsyncTeacher.connect(address) as teacher:
                pending = teacher.submit([3, 1, 4], **ASK)
            await asyncio.wait_for(pending.result(), 20)
        with Server(lambda s: (s.send(welcome()), s.take(1 << 20))) as server, self.assertRaises(KdError) as raised:
            asyncio.run(ask(server.address))
        self.assertEqual(raised.exception.code, "cancelled")

    def test_any_number_of_threads_may_close(self):
        failures = []

        def close(teacher):
            try:
                teacher.close()
            except KdError as failure:
                failures.append(failure)
        with Server(lambda s: (s.send(welcome()), s.take(1))) as server:
            for _ in range(10):
                teacher = Teacher.connect(server.address)
                threads = [threading.Thread(target=close, args=(teacher,)) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(20)
                self.assertFalse(any(thread.is_alive() for thread in threads))
        self.assertEqual(failures, [])

    def closed_while_reconnecting(self, welcomed):
        """How a call ended that waited for a new connection, and what came over that one after the teacher was closed."""
        waits, closed = threading.Event(), threading.Event()

        def script(server):
            if not server.seen:
                server.seen.append("first")
                server.send(welcome())
                return
            waits.set()
            closed.wait(20)
            if welcomed:
                server.send(welcome())
            server.seen.append(server.receive())

        async def ask(address):
            teacher = await AsyncTeacher.connect(address, reconnect=Reconnect(5, 0.01), connect_timeout=None)
            await asyncio.wait_for(teacher._link.closed.wait(), 20)
            calls = [asyncio.ensure_future(teacher.model()) for _ in range(3)]
            await asyncio.get_running_loop().run_in_executor(None, waits.wait, 20)
            await asyncio.wait_for(teacher.close(), 20)
            closed.set()
            ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
            return [getattr(end, "code", end) for end in ends]
        with Server(script) as server:
            try:
                ends = asyncio.run(ask(server.address))
            finally:
                closed.set()
        return ends, server.seen[1:]

    def test_closing_ends_a_reconnection(self):
        for welcomed in (False, True):
            with self.subTest(welcomed=welcomed):
                ends, seen = self.closed_while_reconnecting(welcomed)
                self.assertEqual(ends, ["unavailable"] * 3)
                self.assertEqual([isinstance(s, OSError) for s in seen], [True], seen)

    def test_an_answer_on_its_way_keeps_its_teacher(self):
        def script(server):
            server.send(welcome())
            request_id = server.receive()[1]
            time.sleep(0.2)
            server.send(answer(request_id), frame.encode(Kind.DONE, request_id))
            server.take(1)
        with Server(script) as server:
            self.assertEqual(len(Teacher.connect(server.address).submit([3, 1, 4], **ASK).result(20)), 1)
            gc.collect()

    def test_a_reply_of_no_rows_is_no_reason_to_ask_for_ever(self):
        def script(server):
            server.send(welcome())
            while True:
                body = b'{"rows":4,"width":2,"values":{"dtype":"f32","shape":[0,2],"data":""}}'
                server.send(frame.encode(Kind.REPLY, server.receive()[1], struct.pack("<II", 200, len(body)) + body))
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            with self.assertRaises(KdError) as raised:
                teacher._thread.run(teacher._teacher.weights("head"), 60)
            self.assertEqual(raised.exception.code, "corrupt")

    def test_a_pong_is_no_reply(self):
        def script(server):
            server.send(welcome())
            server.send(frame.encode(Kind.PONG, server.receive()[1], struct.pack("<II", 200, 2) + b"{}"))
            server.take(1)
        with Server(script) as server, Teacher.connect(server.address) as teacher:
            with self.assertRaises(KdError) as raised:
                teacher.model()
            self.assertEqual(raised.exception.code, "corrupt")

    def test_another_teacher_behind_the_same_address_is_refused(self):
        def script(server):
            if not server.seen:
                server.seen.append("first")
                server.send(welcome())
                server.receive()
            else:
                server.send(error(0, b"conflict"))
        with Server(script) as server, Teacher.connect(server.address, reconnect=Reconnect(5, 0.01)) as teacher:
            with self.assertRaises(KdError) as raised:
                teacher.score([3, 1, 4], **ASK)
            self.assertEqual(raised.exception.code, "conflict")


if __name__ == "__main__":
    support.main()
