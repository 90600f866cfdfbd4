# SPDX-License-Identifier: Apache-2.0
"""The client for asyncio."""
from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type, Union, overload

import numpy as np
import numpy.typing as npt

from . import frame
from .errors import KdError
from .frame import Info, Kind, Tokens
from .generate import Generation, Sample, wish
from .job import RETRIED, Job, Reconnect
from .link import Address, Link, Receiver, open_link
from .query import as_tokens, ask
from .rows import Rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .generate import Sampling
    from .query import Question

MAX_BODY_BYTES = 256 << 20
WEIGHTS_AT_ONCE = 1 << 22    # numbers; the server's own limit

Sequences = Union[Sequence[Any], npt.NDArray[Any], Any]


def _decode_array(array: Dict[str, Any]) -> npt.NDArray[np.float32]:
    """An array of kdserved-http(7)'s base64 encoding, as f32."""
    data = np.frombuffer(base64.b64decode(array["data"]), np.dtype({"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[array["dtype"]]))
    values = (data.astype(np.uint32) << np.uint32(16)).view(np.float32) if array["dtype"] == "bf16" else data.astype(np.float32)
    return values.reshape(array["shape"])


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """What a reply of another form does to who takes it apart is the server's fault."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise KdError("corrupt", "%s gave a reply of another form: %r" % (path, error), "reply") from None


class Tokenized(NamedTuple):
    tokens: Tokens
    offsets: npt.NDArray[np.int64]    # (n, 2) bytes of the UTF-8 text


def as_sequences(tokens: Sequences) -> Tuple[List[Tokens], bool]:
    """A list of sequences, and whether one alone was given."""
    if getattr(tokens, "ndim", None) == 1 or (getattr(tokens, "ndim", None) is None and len(tokens) and np.ndim(tokens[0]) == 0):
        return [as_tokens(tokens)], True
    if not len(tokens):
        raise KdError("invalid", "there are none", "sequences")
    return [as_tokens(s, "sequences[%d].tokens" % i) for i, s in enumerate(tokens)], False


class AsyncPending:
    """Answers on their way. Iterate for (index, Rows) in order of arrival; `result()` gives all in the order of the sequences."""

    def __init__(self, job: Job, info: Info, task: asyncio.Task[None], single: bool = False) -> None:
        self._job, self._info, self._task, self._single = job, info, task, single

    @property
    def done(self) -> bool:
        return self._job.over

    def __len__(self) -> int:
        return len(self._job.sequences)

    async def __aiter__(self) -> AsyncIterator[Tuple[int, Rows]]:
        position = 0
        while True:
            index = await self._job.wait_arrived(position)
            if index is None:
                return
            yield index, self._job.rows(index, self._info)
            position += 1

    async def result(self) -> List[Rows]:
        """Every sequence's rows. Raises KdError if any failed."""
        await self._job.wait_over()
        return [self._job.rows(i, self._info) for i in range(len(self))]

    def cancel(self) -> None:
        """Takes the question back; what waits for it raises KdError "cancelled"."""
        self._job.end(KdError("cancelled", "the client took it back"))
        self._task.cancel()


class _Reply(Receiver):
    def __init__(self, loop: asyncio.AbstractEventLoop, expected: Kind) -> None:
        self.body: asyncio.Future[bytes] = loop.create_future()
        self.expected = expected
        self.credited = expected != Kind.PONG

    def take(self, kind: Kind, body: bytes, answer: Optional[frame.Answer]) -> None:
        if self.body.done():
            return
        if kind == self.expected:
            self.body.set_result(body)
        elif kind == Kind.ERROR:
            self.fail(frame.decode_error(body)[1])
        else:
            raise KdError("corrupt", "%s where it does not belong" % kind.name, "frame")

    def fail(self, error: KdError) -> None:
        if not self.body.done():
            self.body.set_exception(error)
            self.body.exception()    # looked at


class AsyncTeacher:
    """A server's teacher. Made by `await AsyncTeacher.connect(...)`; used on one loop, by any number of its tasks at once."""

    def __init__(self, link: Link, address: Address, token: Optional[str], reconnect: Optional[Reconnect], connect_timeout: Optional[float],
                 timeout: Optional[float], max_body_bytes: int) -> None:
        assert link.info is not None
        self._link, self._info = link, link.info
        self._address, self._token, self._reconnect = address, token, reconnect
        self._connect_timeout, self._timeout, self._max_body_bytes = connect_timeout, timeout, max_body_bytes
        self._replaced: List[Link] = []    # some may drain
        self._opening: Optional[asyncio.Task[None]] = None
        self._closed = False
        self._tasks: "set[asyncio.Task[None]]" = set()

    @classmethod
    async def connect(cls, address: str, *, token: Optional[str] = None, expect_fingerprint: Optional[str] = None,
                      teacher: Optional[str] = None, reconnect: Optional[Reconnect] = None, connect_timeout: Optional[float] = 10.0,
                      timeout: Optional[float] = 60.0, max_body_bytes: int = MAX_BODY_BYTES, ca: Optional[str] = None,
                      server_name: Optional[str] = None) -> AsyncTeacher:
        """Connects to "unix:PATH", "tcp:HOST:PORT" or, encrypted, "tls:HOST:PORT".

        ca: with tls, a file of certificates (PEM) one of which must vouch for the server's; None = the system's. server_name: with tls,
        whom the server's certificate must be for; None = HOST.
        expect_fingerprint: of the teacher asked; a server that has none such is refused ("conflict"). teacher: its name, where a server
        has several; without either the first is asked.
        reconnect: None = a lost connection is an error of everything in flight and after.
        timeout: seconds of silence, while something is in flight, after which the server must answer a ping or is given up (its own pings
        are silence); None = never.
        max_body_bytes: largest answer accepted.
        """
        where = Address.parse(address, ca, server_name)
        try:
            expected = bytes.fromhex(expect_fingerprint or "0" * 64)
        except ValueError:
            expected = b""
        if len(expected) != 32:
            raise KdError("invalid", "a fingerprint is 64 hexadecimal digits", "expect_fingerprint")
        link = await open_link(where, token, expected, connect_timeout, max_body_bytes, timeout)
        made = cls(link, where, token, reconnect, connect_timeout, timeout, max_body_bytes)
        return made if teacher is None else await made._choose(teacher)

    async def _open(self, teacher: bytes) -> Link:
        return await open_link(self._address, self._token, teacher, self._connect_timeout, self._max_body_bytes, self._timeout)

    async def _choose(self, name: str) -> AsyncTeacher:
        """Connects once more where another than the first teacher has the name."""
        try:
            model = await self.model()
            with _reading("/v1/model"):
                ids = [t["id"] for t in model.get("teachers", [model]) if name in (t["name"], t["id"])]
            if not ids:
                raise KdError("not_found", "the server has no teacher %r" % name, "teacher")
            if self._info.fingerprint != ids[0]:
                link = await self._open(bytes.fromhex(ids[0]))
                assert link.info is not None
                self._link.close()
                self._link, self._info = link, link.info
            return self
        except BaseException:
            self._link.close()
            raise

    @property
    def info(self) -> Info:
        """What the server said of itself when it was connected."""
        return self._info

    def leave(self) -> None:
        """Ends the connection without waiting; on the loop."""
        for link in (*self._replaced, self._link):
            link.close()

    async def close(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})    # it may have a new connection all the same
        self.leave()
        for link in (*self._replaced, self._link):
            await link.closed.wait()

    async def __aenter__(self) -> AsyncTeacher:
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.close()

    # ---- scores

    @overload
    async def score(self, tokens: Sequence[int], *, durable: bool = ..., store: bool = ..., deadline: Optional[float] = ...,
                    **question: Unpack[Question]) -> Rows: ...

    @overload
    async def score(self, tokens: Sequences, *, durable: bool = ..., store: bool = ..., deadline: Optional[float] = ...,
                    **question: Unpack[Question]) -> List[Rows]: ...

    async def score(self, tokens: Sequences, *, durable: bool = False, store: bool = True, deadline: Optional[float] = None,
                    **question: Unpack[Question]) -> Union[Rows, List[Rows]]:
        """What the teacher thinks of one sequence of ids (gives Rows), or of a list of them (gives a list of Rows).

        durable: answer only when the records are on the server's disk. store=False: neither look in the server's store nor add to it.
        deadline: seconds after which the server drops the work ("deadline"); one that does not is waited for `timeout` longer. question: see
        Question.
        """
        pending = self.submit(tokens, durable=durable, store=store, deadline=deadline, **question)
        try:
            rows = await pending.result()
        except asyncio.CancelledError:
            pending.cancel()
            raise
        return rows[0] if pending._single else rows

    def submit(self, tokens: Sequences, *, durable: bool = False, store: bool = True, deadline: Optional[float] = None,
               **question: Unpack[Question]) -> AsyncPending:
        """Asks without waiting: submit batch n + 1, then take the answers of batch n and train on them."""
        sequences, single = as_sequences(tokens)
        if deadline is not None and not math.isfinite(deadline):
            raise KdError("invalid", "%r is no number of seconds" % deadline, "deadline")
        asked = ask(question, sequences, single)
        loop = asyncio.get_running_loop()
        flags = (frame.SCORE_DURABLE if durable else 0) | (0 if store else frame.SCORE_NO_STORE)
        job = Job(sequences, asked, flags, None if deadline is None else loop.time() + deadline)
        task = loop.create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: job.end(KdError("cancelled", "the connection was closed")))    # if nothing else: it may not have begun
        return AsyncPending(job, self._info, task, single)

    async def _run(self, job: Job) -> None:
        limit = None    # work past its deadline is the server's to end; one that only answers pings is given its silence more
        if job.deadline is not None and self._timeout is not None:
            limit = job.deadline - asyncio.get_running_loop().time() + self._timeout
        try:
            await asyncio.wait_for(self._retry(job), limit)
            job.end(None)
        except KdError as error:
            job.end(error)
        except asyncio.TimeoutError:
            job.end(KdError("deadline", "the deadline passed, and the server does not say so"))
        except Exception as error:    # a fault of this module must not leave anyone waiting
            job.end(KdError("internal", repr(error)))
            raise

    async def _retry(self, job: Job) -> None:
        attempt, arrived = 0, 0
        while True:
            try:
                return await job.ask(await self._usable_link())
            except KdError as error:
                policy = self._reconnect
                attempt = 0 if len(job.arrived) > arrived else attempt
                arrived = len(job.arrived)
                if policy is None or error.code not in RETRIED or attempt >= policy.attempts or self._closed:
                    raise
                await asyncio.sleep(policy.delay(attempt))
                attempt += 1

    async def _usable_link(self) -> Link:
        """The connection, or with a Reconnect a new one where the old serves no more."""
        if self._reconnect is not None and not self._closed and (self._link.lost is not None or self._link.draining):
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._reopen())
                self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())    # looked at
            opening = self._opening
            await asyncio.wait({opening})    # who is cancelled here leaves it to the others, and to close()
            if not opening.cancelled():
                opening.result()
        self._link.check()
        return self._link

    async def _reopen(self) -> None:
        try:
            opened = await self._open(bytes.fromhex(self._info.fingerprint))
            self._replaced = [link for link in (*self._replaced, self._link) if not link.closed.is_set()]
            self._link = opened
        finally:
            self._opening = None

    # ---- control resources

    async def call(self, method: str, path: str, body: Union[bytes, Dict[str, Any], None] = None) -> Tuple[int, bytes]:
        """A resource of kdserved-http(7): status and body. A status of 400 or more is not an exception here."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        link = await self._usable_link()
        assert link.credits is not None
        await link.credits.acquire()
        try:
            receiver = _Reply(link.loop, Kind.REPLY)
            link.start(Kind.CALL, frame.call(method, path, data), receiver)
        except BaseException:
            link.credits.release()
            raise
        return frame.decode_reply(await receiver.body)

    async def resource(self, method: str, path: str, body: Union[bytes, Dict[str, Any], None] = None) -> Any:
        """The JSON of a resource; its error is a KdError."""
        status, data = await self.call(method, path, body)
        try:
            value = json.loads(data)
        except ValueError:
            raise KdError("corrupt", "%s gave status %d and no JSON" % (path, status), "reply") from None
        if status < 400:
            return value
        what = value.get("error") if isinstance(value, dict) else None
        what = what if isinstance(what, dict) else {}
        raise KdError(str(what.get("code", "internal")), str(what.get("message", "status %d" % status)), str(what.get("field", "")))

    async def model(self) -> Dict[str, Any]:
        """What is served: id, tokenizer_id, architecture, vocab_size, ... of the first teacher, and `teachers`, all of them."""
        found: Dict[str, Any] = await self.resource("GET", "/v1/model")
        return found

    async def status(self) -> Dict[str, Any]:
        found: Dict[str, Any] = await self.resource("GET", "/v1/status")
        return found

    async def tokenize(self, text: str, *, add_special: bool = True, specials: bool = False) -> Tokenized:
        """add_special: the tokenizer's own template (a leading BOS, say). specials: special tokens written in the text become their ids."""
        found = await self.resource("POST", "/v1/tokenize", {"text": text, "add_special": add_special, "specials": specials})
        with _reading("/v1/tokenize"):
            return Tokenized(as_tokens(found["tokens"]), np.array(found["offsets"], np.int64).reshape(-1, 2))

    async def detokenize(self, tokens: Sequences, *, skip_special: bool = False) -> str:
        found = await self.resource("POST", "/v1/detokenize", {"tokens": as_tokens(tokens).tolist(), "skip_special": skip_special})
        with _reading("/v1/detokenize"):
            return str(found["text"])

    async def weights(self, tensor: str, ids: Optional[Sequences] = None, *, dtype: str = "f32") -> npt.NDArray[np.float32]:
        """Rows of the "embedding" or the "head" by token id (all of them without ids), or the one row of "final_norm": (rows, width)."""
        asked: Dict[str, Any] = {"tensor": tensor, "dtype": dtype, "encoding": "base64", "teacher": self._info.fingerprint}
        wanted = None if ids is None else as_tokens(ids, "ids").tolist()
        parts, done, step = [], 0, 1
        while True:
            some = {"first": done, "count": step} if wanted is None else {"ids": wanted[done:done + step]}
            found = await self.resource("POST", "/v1/weights", dict(asked, **({} if tensor == "final_norm" else some)))
            with _reading("/v1/weights"):
                parts.append(_decode_array(found["values"]))
                total, width = int(found["rows"]) if wanted is None else len(wanted), int(found["width"])
                step = max(1, WEIGHTS_AT_ONCE // width)
            done += len(parts[-1])
            if not len(parts[-1]):
                raise KdError("corrupt", "rows were asked for, and none came", "values")
            if done >= total:
                return np.concatenate(parts)
            step = min(step, total - done)

    async def generate(self, prompts: Union[str, Sequences], **sampling: Unpack[Sampling]) -> List[Sample]:
        """The teacher goes on from a prompt (a text or ids) or a list of them; `n` samples of each, prompt after prompt."""
        generation = await self._generate(prompts, False, sampling)
        try:
            return await generation.all()
        finally:
            generation.cancel()

    async def stream(self, prompts: Union[str, Sequences], **sampling: Unpack[Sampling]) -> AsyncIterator[Sample]:
        """As generate, but what is new of each sample as it comes; leaving the loop ends the work."""
        generation = await self._generate(prompts, True, sampling)
        position = 0
        try:
            while True:
                piece = await generation.wait(position)
                if piece is None:
                    return
                yield piece
                position += 1
        finally:
            generation.cancel()

    async def _generate(self, prompts: Union[str, Sequences], stream: bool, sampling: Sampling) -> Generation:
        each = [prompts] if isinstance(prompts, str) else list(prompts)
        if each and all(isinstance(p, str) for p in each):
            ids = [(await self.tokenize(p)).tokens for p in each]
        else:
            ids = as_sequences(prompts)[0]
        asked = wish(ids, stream, sampling)
        deadline = sampling.get("deadline")
        link = await self._usable_link()
        assert link.credits is not None
        await link.credits.acquire()
        try:
            return Generation(link, asked, deadline + self._timeout if deadline and self._timeout is not None else None)
        except BaseException:
            link.credits.release()
            raise

    async def ping(self) -> float:
        """Seconds to the server and back."""
        link = await self._usable_link()
        begin = time.perf_counter()
        receiver = _Reply(link.loop, Kind.PONG)
        link.start(Kind.PING, b"kdclient", receiver)
        if await receiver.body != b"kdclient":
            raise KdError("corrupt", "a pong with another body", "frame")
        return time.perf_counter() - begin
