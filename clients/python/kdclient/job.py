# SPDX-License-Identifier: Apache-2.0
"""A question about many sequences on its way: split into requests, its answers gathered in order of arrival."""
from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Iterator, List, Optional, Sequence

import numpy as np

from . import frame, record
from .errors import KdError
from .frame import Info, Kind, Tokens
from .link import Link, Receiver
from .query import Asked
from .rows import Rows

RETRIED = ("unavailable", "overloaded")    # and lost connections, which are "unavailable"


@dataclass(frozen=True)
class Reconnect:
    """What to do when the connection is lost, the server stops or is overloaded: connect again and ask again for what is not answered yet
    (the same question has the same answer, so nothing is counted twice). Delays double; an answer starts the count anew. The server that
    is found must have the same fingerprint."""
    attempts: int = 5
    first_delay: float = 0.2
    longest_delay: float = 10.0

    def delay(self, attempt: int) -> float:
        return min(self.first_delay * 2.0 ** min(attempt, 62), self.longest_delay)


@dataclass
class Job:
    """Lives on the loop; `answers` and `error` are read elsewhere only once `over`."""
    sequences: Sequence[Tokens]
    asked: Asked
    flags: int
    deadline: Optional[float]           # loop time
    answers: List[Optional[frame.Answer]] = field(default_factory=list)
    arrived: List[int] = field(default_factory=list)
    over: bool = False
    error: Optional[KdError] = None

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.sequences)
        self._changed = asyncio.Event()

    def put(self, index: int, answer: frame.Answer) -> None:
        self.answers[index] = answer
        self.arrived.append(index)
        self._changed.set()

    def end(self, error: Optional[KdError]) -> None:
        if not self.over:
            self.over, self.error = True, error
            self._changed.set()

    async def wait_arrived(self, position: int) -> Optional[int]:
        """The index of the sequence that arrived as number `position`; None when all have. Raises what ended the job early."""
        while position >= len(self.arrived) and not self.over:
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None:
            raise self.error
        return self.arrived[position] if position < len(self.arrived) else None

    async def wait_over(self) -> None:
        while not self.over:
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None:
            raise self.error

    def rows(self, index: int, info: Info) -> Rows:
        """Unpacks one answer and checks that it answers what was asked. Any thread."""
        answer, tokens, teacher = self.answers[index], self.sequences[index], bytes.fromhex(info.fingerprint)
        assert answer is not None
        canonical = self.asked.of(index).canonical(len(tokens))
        data, piece = answer.record, answer.piece
        if answer.short:
            data, piece = record.restore(data, piece, teacher, tokens, canonical.encoded)
        other = KdError("corrupt", "the answer is one to another question", "sequences[%d]" % index)
        if record.question(data) != canonical.encoded:    # before anything is unpacked: its sizes are not those asked for
            raise other
        found = record.decode(data, answer.cached, piece, canonical)
        if found.teacher != info.fingerprint or not np.array_equal(found.tokens, tokens):
            raise other
        return found

    def requests(self, info: Info) -> Iterator[List[int]]:
        """The unanswered sequences in requests the server takes."""
        batch: List[int] = []
        size = 0
        for index, tokens in enumerate(self.sequences):
            if self.answers[index] is not None:
                continue
            alone = frame.score_bytes(self.asked.query.encoded, tokens, self.asked.part(index))
            more = 4 + 4 * len(tokens) + len(self.asked.part(index))
            if alone > info.max_body_bytes:
                raise KdError("too_large", "the server takes requests of %d bytes" % info.max_body_bytes, "sequences[%d]" % index)
            if batch and (len(batch) >= info.max_sequences or size + more > info.max_body_bytes):
                yield batch
                batch = []
            size = size + more if batch else alone
            batch.append(index)
        if batch:
            yield batch

    def _body(self, indices: List[int], link: Link) -> bytes:
        parts = [self.asked.part(i) for i in indices] if self.asked.parts else []
        sequences = [self.sequences[i] for i in indices]
        return frame.score(self.asked.query.encoded, sequences, parts, self.flags | frame.SCORE_SHORT, self._remaining_ms(link))

    async def ask(self, link: Link) -> None:
        """Asks for what is unanswered and waits until it has come."""
        assert link.info is not None and link.credits is not None
        batches: List[Batch] = []
        try:
            for indices in self.requests(link.info):
                await link.credits.acquire()
                try:
                    for batch in batches:
                        batch.check()
                    batches.append(Batch(self, link, self._body(indices, link), indices))
                except BaseException:
                    link.credits.release()
                    raise
                await link.drain()
            await asyncio.gather(*(batch.ended for batch in batches))
        finally:
            for batch in batches:
                batch.abandon()

    def _remaining_ms(self, link: Link) -> int:
        if self.deadline is None:
            return 0
        left = self.deadline - link.loop.time()
        if left <= 0:
            raise KdError("deadline", "the deadline passed before the request was sent")
        return min(int(left * 1000) + 1, 0xFFFFFFFF)


class Batch(Receiver):
    """One SCORE frame in flight."""

    def __init__(self, job: Job, link: Link, body: bytes, indices: List[int]) -> None:
        self.job, self.link, self.indices = job, link, indices
        self.waiting = set(range(len(indices)))
        self.failure: Optional[KdError] = None
        self.over = False
        self.ended: asyncio.Future[None] = link.loop.create_future()
        self.request_id = link.start(Kind.SCORE, body, self)

    def take(self, kind: Kind, body: bytes, answer: Optional[frame.Answer]) -> None:
        if kind == Kind.ANSWER and answer is not None:
            self._answered(answer.index)
            again = self.job.answers[self.indices[answer.index]] is not None    # a batch given up says late what was asked anew
            if not self.job.over and not again:
                self.job.put(self.indices[answer.index], answer)
        elif kind == Kind.ERROR:
            index, error = frame.decode_error(body)
            if index == frame.WHOLE_REQUEST:
                self._end(self._renumbered(error))
                return
            self._answered(index)
            error.field = error.field or "sequences[%d]" % index
            self.failure = self.failure or self._renumbered(error)
        elif kind == Kind.DONE and not body and not self.waiting:
            self._end(self.failure)
        else:
            raise KdError("corrupt", "%s where it does not belong" % kind.name, "frame")

    def _answered(self, index: int) -> None:
        if index not in self.waiting:
            raise KdError("corrupt", "an answer for sequence %d, which awaits none" % index, "frame")
        self.waiting.remove(index)

    def _renumbered(self, error: KdError) -> KdError:
        """The server counts the sequences of the request, the caller all of them."""
        def renumbered(found: "re.Match[str]") -> str:
            index = int(found.group(1))
            return "sequences[%d]" % self.indices[index] if index < len(self.indices) else found.group(0)
        pattern = r"\bsequences\[(\d{1,6})\]"
        return KdError(error.code, re.sub(pattern, renumbered, error.message), re.sub(pattern, renumbered, error.field))

    def fail(self, error: KdError) -> None:
        self._end(error)

    def _end(self, error: Optional[KdError]) -> None:
        self.over = True
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
            self.ended.exception()    # looked at: no warning when nobody awaits it any more

    def check(self) -> None:
        if self.ended.done():
            self.ended.result()

    def abandon(self) -> None:
        if not self.over:
            self.link.cancel(self.request_id)
        self.ended.cancel()
