# SPDX-License-Identifier: Apache-2.0
"""The client for ordinary code: the asyncio client on a thread of its own, so that answers arrive while the caller trains."""
from __future__ import annotations

import asyncio
import os
import threading
import weakref
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Dict, Iterator, List, Optional, Sequence, Tuple, Type, TypeVar, Union, overload

import numpy as np
import numpy.typing as npt

from .aio import MAX_BODY_BYTES, AsyncPending, AsyncTeacher, Sequences, Tokenized
from .errors import KdError
from .frame import Info
from .generate import Sample
from .job import Reconnect
from .rows import Rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .generate import Sampling
    from .query import Question

T = TypeVar("T")


class _Thread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()    # a Teacher's end may come, by the garbage collector, in the middle of a call
        self.stopping = False
        self.loop = asyncio.new_event_loop()
        self.process = os.getpid()
        self.thread = threading.Thread(target=self._serve, name="kdclient", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            with self.lock:
                self.stopping = True
            self.loop.run_until_complete(self._end())
            self.loop.close()

    async def _end(self) -> None:
        """Somebody waits for each task: what is not done is cancelled, and a last turn of the loop tells who waits."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: Optional[float] = None) -> T:
        gone = KdError("unavailable", "the teacher was closed, or connected before a fork: connect again in this process")
        if os.getpid() != self.process:
            coroutine.close()
            raise gone
        with self.lock:
            if self.stopping:
                coroutine.close()
                raise gone
            future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except CancelledError:
            raise gone from None
        except FutureTimeout:
            future.cancel()
            raise KdError("deadline", "no result within %g s" % (timeout or 0)) from None
        except BaseException:
            future.cancel()
            raise

    def post(self, callback: Callable[[], None]) -> None:
        """Has it called on the loop, unless that has ended, without waiting: also from the loop's own thread."""
        if os.getpid() != self.process:
            return
        with self.lock:
            if not self.stopping:
                self.loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        self.post(self.loop.stop)


def _leave(thread: _Thread, teacher: AsyncTeacher) -> None:
    """Nobody asks any more: the connection ends now, not when its memory is looked at."""
    thread.post(teacher.leave)
    thread.stop()


class Pending:
    """Answers on their way. Iterate for (index, Rows) in order of arrival; `result()` gives all in the order of the sequences."""

    def __init__(self, teacher: Teacher, pending: AsyncPending) -> None:
        self._teacher, self._thread, self._pending = teacher, teacher._thread, pending    # the teacher stays as long as this does

    @property
    def done(self) -> bool:
        return self._pending.done

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Tuple[int, Rows]]:
        job, position = self._pending._job, 0
        while True:
            index = self._thread.run(job.wait_arrived(position))
            if index is None:
                return
            yield index, job.rows(index, self._pending._info)
            position += 1

    def result(self, timeout: Optional[float] = None) -> List[Rows]:
        """Every sequence's rows. Raises KdError if any failed, "deadline" after `timeout` seconds (the question stays asked)."""
        job = self._pending._job
        self._thread.run(job.wait_over(), timeout)
        return [job.rows(i, self._pending._info) for i in range(len(self))]    # unpacked on the caller's thread

    def cancel(self) -> None:
        """Takes the question back; what waits for it raises KdError "cancelled"."""
        async def cancel() -> None:
            self._pending.cancel()
        self._thread.run(cancel())


class Teacher:
    """A server's teacher. Made by `Teacher.connect(...)`; used by any number of threads at once."""

    def __init__(self, thread: _Thread, teacher: AsyncTeacher) -> None:
        self._thread, self._teacher = thread, teacher
        self._finalizer = weakref.finalize(self, _leave, thread, teacher)

    @classmethod
    def connect(cls, address: str, *, token: Optional[str] = None, expect_fingerprint: Optional[str] = None,
                teacher: Optional[str] = None, reconnect: Optional[Reconnect] = None, connect_timeout: Optional[float] = 10.0,
                timeout: Optional[float] = 60.0, max_body_bytes: int = MAX_BODY_BYTES, ca: Optional[str] = None,
                server_name: Optional[str] = None) -> Teacher:
        """See AsyncTeacher.connect."""
        thread = _Thread()
        try:
            return cls(thread, thread.run(AsyncTeacher.connect(
                address, token=token, expect_fingerprint=expect_fingerprint, teacher=teacher, reconnect=reconnect,
                connect_timeout=connect_timeout, timeout=timeout, max_body_bytes=max_body_bytes, ca=ca, server_name=server_name)))
        except BaseException:
            thread.stop()
            raise

    @property
    def info(self) -> Info:
        """What the server said of itself when it was connected."""
        return self._teacher.info

    def close(self) -> None:
        if self._finalizer.alive and os.getpid() == self._thread.process:
            try:
                self._thread.run(self._teacher.close())
            except KdError:
                pass    # another thread closes it, too
            self._finalizer()
            self._thread.thread.join()

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    @overload
    def score(self, tokens: Sequence[int], *, durable: bool = ..., store: bool = ..., deadline: Optional[float] = ...,
              **question: Unpack[Question]) -> Rows: ...

    @overload
    def score(self, tokens: Sequences, *, durable: bool = ..., store: bool = ..., deadline: Optional[float] = ...,
              **question: Unpack[Question]) -> List[Rows]: ...

    def score(self, tokens: Sequences, *, durable: bool = False, store: bool = True, deadline: Optional[float] = None,
              **question: Unpack[Question]) -> Union[Rows, List[Rows]]:
        """What the teacher thinks of one sequence of ids (gives Rows), or of a list of them (gives a list of Rows).

        durable: answer only when the records are on the server's disk. store=False: neither look in the server's store nor add to it.
        deadline: seconds after which the server drops the work ("deadline"). question: see Question.
        """
        pending = self.submit(tokens, durable=durable, store=store, deadline=deadline, **question)
        try:
            rows = pending.result()
        except KeyboardInterrupt:
            pending.cancel()
            raise
        return rows[0] if pending._pending._single else rows

    def submit(self, tokens: Sequences, *, durable: bool = False, store: bool = True, deadline: Optional[float] = None,
               **question: Unpack[Question]) -> Pending:
        """Asks without waiting: submit batch n + 1, then take the answers of batch n and train on them."""
        async def submit() -> AsyncPending:
            return self._teacher.submit(tokens, durable=durable, store=store, deadline=deadline, **question)
        return Pending(self, self._thread.run(submit()))

    def call(self, method: str, path: str, body: Union[bytes, Dict[str, Any], None] = None) -> Tuple[int, bytes]:
        """A resource of kdserved-http(7): status and body. A status of 400 or more is not an exception here."""
        return self._thread.run(self._teacher.call(method, path, body))

    def resource(self, method: str, path: str, body: Union[bytes, Dict[str, Any], None] = None) -> Any:
        """The JSON of a resource; its error is a KdError."""
        return self._thread.run(self._teacher.resource(method, path, body))

    def model(self) -> Dict[str, Any]:
        """What is served: id, tokenizer_id, architecture, vocab_size, context_length, ..."""
        return self._thread.run(self._teacher.model())

    def status(self) -> Dict[str, Any]:
        return self._thread.run(self._teacher.status())

    def tokenize(self, text: str, *, add_special: bool = True, specials: bool = False) -> Tokenized:
        """add_special: the tokenizer's own template (a leading BOS, say). specials: special tokens written in the text become their ids."""
        return self._thread.run(self._teacher.tokenize(text, add_special=add_special, specials=specials))

    def detokenize(self, tokens: Sequences, *, skip_special: bool = False) -> str:
        return self._thread.run(self._teacher.detokenize(tokens, skip_special=skip_special))

    def weights(self, tensor: str, ids: Optional[Sequences] = None, *, dtype: str = "f32") -> npt.NDArray[np.float32]:
        """Rows of the "embedding" or the "head" by token id (all of them without ids), or the one row of "final_norm": (rows, width)."""
        return self._thread.run(self._teacher.weights(tensor, ids, dtype=dtype))

    def generate(self, prompts: Union[str, Sequences], **sampling: Unpack[Sampling]) -> List[Sample]:
        """The teacher goes on from a prompt (a text or ids) or a list of them; `n` samples of each, prompt after prompt."""
        return self._thread.run(self._teacher.generate(prompts, **sampling))

    def stream(self, prompts: Union[str, Sequences], **sampling: Unpack[Sampling]) -> Iterator[Sample]:
        """As generate, but what is new of each sample as it comes; leaving the loop ends the work."""
        generation = self._thread.run(self._teacher._generate(prompts, True, sampling))
        position = 0
        try:
            while True:
                piece = self._thread.run(generation.wait(position))
                if piece is None:
                    return
                yield piece
                position += 1
        finally:
            self._thread.post(generation.cancel)    # the garbage collector may end this on the loop's own thread

    def ping(self) -> float:
        """Seconds to the server and back."""
        return self._thread.run(self._teacher.ping())
