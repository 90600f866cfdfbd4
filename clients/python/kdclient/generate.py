# SPDX-License-Identifier: Apache-2.0
"""What the teacher goes on with: a question's bytes, and its samples as they come (kdserved-protocol(7): GENERATE, TOKENS)."""
from __future__ import annotations

import asyncio
import codecs
import struct
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, List, Optional, Sequence, TypedDict, Union

import numpy as np
import numpy.typing as npt

from . import frame
from .errors import KdError
from .frame import Kind, Tokens
from .link import Link, Receiver
from .query import as_ids

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
IGNORE_EOS, STREAM, SEED = 1, 2, 4
MAX_DEADLINE_MS = 0xFFFFFFFF


class Sampling(TypedDict, total=False):
    """How the next token is drawn, each step on what the one before left: temperature, top_k, top_p, min_p, typical_p; kdserved-http(7),
    POST /v1/generate, says it in full. The defaults leave the teacher's own distribution as it is."""
    n: int                       # samples of each prompt, 1
    max_tokens: int              # of each, 16
    temperature: float           # 0 = always the likeliest
    top_k: int                   # 0 = all
    top_p: float
    min_p: float
    typical_p: float
    seed: int                    # with it a sample is always the same; else the server draws one and tells it
    first_sample: int            # number of the first sample
    stop: Union[str, Iterable[str]]
    stop_ids: Iterable[int]
    forced: Iterable[int]        # tokens that every answer begins with
    rows: int                    # ids and raw logits of each token's row
    ignore_eos: bool
    deadline: float              # seconds


@dataclass
class Sample:
    """One answer, or in a stream what is new of it. n tokens, `rows` ids a row."""
    prompt: int                  # number of its prompt
    sample: int                  # number among the prompt's samples
    tokens: Integers             # (n)
    logprobs: Floats             # (n) in the teacher's own distribution
    sampled_logprobs: Floats     # (n) in that which each was drawn from; 0 where nothing was drawn
    lse: Floats                  # (n) of the token's row at temperature 1
    ids: Integers                # (n, rows) of each row, the largest logit first
    logits: Floats               # (n, rows) raw
    text: str
    finish: Optional[str] = None    # "stop" or "length"; None: there is more to come
    stop_id: Optional[int] = None   # the token that ended it
    stop: Optional[str] = None      # the string that did
    reused: int = 0              # positions of the prompt that did not have to be computed
    seed: int = 0


@dataclass(frozen=True)
class Wish:
    """What is asked, ready to be sent."""
    body: bytes
    n: int
    n_prompts: int
    rows: int
    stops: Sequence[str]


def wish(prompts: Sequence[Tokens], stream: bool, asked: Sampling) -> Wish:
    unknown = set(asked) - set(Sampling.__annotations__)
    if unknown:
        raise TypeError("there is no way of sampling called %s" % ", ".join(sorted(unknown)))
    asked = {name: value for name, value in asked.items() if value is not None}    # type: ignore[assignment]
    stop = asked.get("stop", ())
    stops = [stop] if isinstance(stop, str) else list(stop)
    stop_ids, forced = (as_ids(list(asked.get(name, ())), name) for name in ("stop_ids", "forced"))    # type: ignore[call-overload]
    n, rows, seed = asked.get("n", 1), asked.get("rows", 0), asked.get("seed")
    flags = (IGNORE_EOS if asked.get("ignore_eos") else 0) | (STREAM if stream else 0) | (0 if seed is None else SEED)
    words = [s.encode() for s in stops]
    if any(not 1 <= len(w) <= 256 or 0 in w for w in words):
        raise KdError("invalid", "a stop string has 1 to 256 bytes, none of them 0", "stop")
    try:
        head = struct.pack("<6IfI3fQ4I", flags, min(int(asked.get("deadline", 0) * 1000 + 0.999), MAX_DEADLINE_MS), n,
                           asked.get("first_sample", 0),
                           asked.get("max_tokens", 16), rows, asked.get("temperature", 1.0), asked.get("top_k", 0), asked.get("top_p", 1.0),
                           asked.get("min_p", 0.0), asked.get("typical_p", 1.0), seed or 0, len(stop_ids), len(words), len(forced),
                           len(prompts))
    except (struct.error, OverflowError, ValueError) as error:
        raise KdError("invalid", "it cannot be written down: %s" % error, "generate") from None
    ids = np.dtype("<u4")
    parts = [head, stop_ids.astype(ids).tobytes(), *(struct.pack("<H", len(w)) + w for w in words), forced.astype(ids).tobytes(),
             np.array([len(p) for p in prompts], ids).tobytes(), *(p.astype(ids).tobytes() for p in prompts)]
    return Wish(b"".join(parts), n, len(prompts), rows, stops)


class _Part:
    """A sample so far, against which the next frame is checked."""

    def __init__(self) -> None:
        self.pieces: List[Sample] = []
        self.n_tokens = 0
        self.over = False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")    # a character may be cut between frames


_ARRAYS = ("tokens", "logprobs", "sampled_logprobs", "lse", "ids", "logits")


def _joined(pieces: Sequence[Sample]) -> Sample:
    arrays: Dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in pieces]) for name in _ARRAYS}
    return replace(pieces[-1], text="".join(p.text for p in pieces), **arrays)


class Generation(Receiver):
    """One GENERATE in flight; lives on the loop."""

    def __init__(self, link: Link, asked: Wish, patience: Optional[float]) -> None:
        """patience: seconds after which it is given up, whatever the server says; None = never."""
        self.asked = asked
        self.parts = [_Part() for _ in range(asked.n * asked.n_prompts)]
        self.arrived: List[Sample] = []
        self.over = False
        self.error: Optional[KdError] = None
        self._changed = asyncio.Event()
        self._link = link
        self._ends_at = None if patience is None else link.loop.time() + patience
        self.request_id = link.start(Kind.GENERATE, asked.body, self)

    def take(self, kind: Kind, body: bytes, answer: Optional[frame.Answer]) -> None:
        if kind == Kind.TOKENS:
            self._tokens(frame.decode_tokens(body))
        elif kind == Kind.ERROR:
            index, error = frame.decode_error(body)
            if index == frame.WHOLE_REQUEST:
                self.fail(error)
                return
            self._part(index).over = True
            self.error = self.error or error
        elif kind == Kind.DONE and not body and all(p.over for p in self.parts):
            self.over = True
        else:
            raise KdError("corrupt", "%s where it does not belong" % kind.name, "frame")
        self._changed.set()

    def fail(self, error: KdError) -> None:
        self.over, self.error = True, self.error or error
        self._changed.set()

    def cancel(self) -> None:
        if not self.over:
            self._link.cancel(self.request_id)
            self.fail(KdError("cancelled", "the client took it back"))

    def _part(self, index: int) -> _Part:
        if index >= len(self.parts) or self.parts[index].over:
            raise KdError("corrupt", "tokens of sample %d, which awaits none" % index, "frame")
        return self.parts[index]

    def _tokens(self, new: frame.NewTokens) -> None:
        part = self._part(new.index)
        if new.first != part.n_tokens or new.rows != self.asked.rows:
            raise KdError("corrupt", "tokens of sample %d that do not follow those before" % new.index, "frame")
        if new.stop is not None and new.stop >= len(self.asked.stops):
            raise KdError("corrupt", "stop string %d, which was not asked" % new.stop, "frame")
        part.n_tokens += len(new.tokens)
        part.over = new.last
        piece = Sample(new.index // self.asked.n, new.index % self.asked.n, new.tokens, new.logprobs, new.sampled_logprobs, new.lse,
                       new.ids, new.logits, part.decoder.decode(new.text, new.last), new.finish, new.stop_id,
                       None if new.stop is None else self.asked.stops[new.stop], new.reused, new.seed)
        part.pieces.append(piece)
        self.arrived.append(piece)

    async def _change(self) -> None:
        self._changed.clear()
        left = None if self._ends_at is None else self._ends_at - self._link.loop.time()
        try:
            await asyncio.wait_for(self._changed.wait(), left)
        except asyncio.TimeoutError:
            self._link.cancel(self.request_id)
            self.fail(KdError("deadline", "the deadline passed, and the server does not say so"))

    async def wait(self, position: int) -> Optional[Sample]:
        """What arrived as number `position`; None when all has. Raises what ended it early."""
        while position >= len(self.arrived) and not self.over:
            await self._change()
        if position < len(self.arrived):
            return self.arrived[position]
        if self.error is not None:
            raise self.error
        return None

    async def all(self) -> List[Sample]:
        """Every sample, whole, in order. Raises if any failed."""
        while not self.over:
            await self._change()
        if self.error is not None:
            raise self.error
        return [_joined(p.pieces) for p in self.parts]
