# SPDX-License-Identifier: Apache-2.0
"""What the teacher said about one sequence, as arrays, and what follows from them."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import numpy.typing as npt

from .errors import KdError
from .frame import Tokens
from .query import Query

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def _missing(name: str) -> KdError:
    return KdError("invalid", "this was not asked", name)


@dataclass
class Rows:
    """The answer for one sequence. Row r is position query.first + r: what the teacher predicts after reading tokens 0 to that position.

    Arrays are row-major and belong to the caller; those that were not asked for are None. Rows that are not `ok` (the teacher gave NaN or
    infinity) hold zeros, and ids -1. R rows, N temperatures, K = top_k, W ids (the vocabulary, or keep).
    """
    teacher: str                 # fingerprint, hexadecimal
    vocab_size: int
    tokens: Tokens               # of the sequence
    query: Query                 # canonical: temperatures ascending, first and last from 0
    record: bytes = field(repr=False)    # the bytes, to be kept as they are
    cached: bool                 # it came from the server's store
    ok: Bools                    # (R)
    max_logit: Optional[Floats] = None    # (R) the largest
    lse: Optional[Floats] = None          # (R, N) log of the sum over the ids of exp(logit / T), at each temperature
    n_top: Optional[Integers] = None      # (R) ids in the row: K, but with top_mass
    ids: Optional[Integers] = None        # (R, K) by descending logit, ties to the lower id; -1 after the row's last
    logits: Optional[Floats] = None       # (R, K) raw; 0 after the row's last
    dense: Optional[Floats] = None        # (R, W) raw
    own_logit: Optional[Floats] = None    # (R) NaN where no token follows, or keep lacks it
    entropy: Optional[Floats] = None      # (R) natural logarithm; this and the next four at temperature 1
    max_prob: Optional[Floats] = None     # (R)
    argmax: Optional[Integers] = None     # (R)
    sum_squares: Optional[Floats] = None  # (R) of the probabilities
    tail: Optional[Floats] = None         # (R) log of the probability outside the top-k; -infinity where there is none
    gather_at: Optional[Integers] = None  # (R + 1) row r's gathered ids are gather_ids[gather_at[r]:gather_at[r + 1]]
    gather_ids: Optional[Integers] = None
    gathered: Optional[Floats] = None     # raw logits at gather_ids
    draw_at: Optional[Integers] = None    # (R + 1) row r's drawn ids are draw_ids[draw_at[r]:draw_at[r + 1]]
    draw_ids: Optional[Integers] = None   # distinct, ascending within a row
    draw_counts: Optional[Integers] = None
    draw_log_ratios: Optional[Floats] = None    # log of probability / proposal, where tau is not 1
    span_sums: Optional[Floats] = None    # (spans) NaN where a row is not ok, or keep lacks a token
    features: Optional[List[Floats]] = None     # of each feature (R, width); (1, width) where pooled

    def __len__(self) -> int:
        return len(self.ok)

    @property
    def key(self) -> str:
        """The content key: hash of teacher, tokens and question."""
        return self.record[48:80].hex()

    def lse_at(self, temperature: float = 1.0) -> Floats:
        """(R) the lse at one of the temperatures asked for."""
        wanted = float(np.float32(temperature))
        if self.lse is None or wanted not in self.query.temperatures:
            raise KdError("invalid", "the lse at %g was not asked for" % temperature, "temperatures")
        column: Floats = self.lse[:, self.query.temperatures.index(wanted)]
        return column

    def logprobs(self, temperature: float = 1.0) -> Floats:
        """(R, K) log-probabilities of the top-k over all ids; -infinity where there is no id."""
        if self.logits is None or self.ids is None:
            raise _missing("top_k")
        return self._logprobs(self.logits, self.ids >= 0, temperature)

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """(R, K) probabilities of the top-k; 0 where there is no id."""
        found: Floats = np.exp(self.logprobs(temperature))
        return found

    def tail_mass(self, temperature: float = 1.0) -> Floats:
        """(R) the probability outside the top-k. At temperature 1 exact where the tail was asked for, else by subtraction (noise below
        about 1e-6; 1e-3 with rounded values)."""
        if self.tail is not None and float(np.float32(temperature)) == 1.0:
            mass: Floats = np.exp(self.tail) * self.ok
            return mass
        head = self.probabilities(temperature).sum(axis=1, dtype=np.float64)
        rest: Floats = (np.maximum(1.0 - head, 0.0) * self.ok).astype(np.float32)
        return rest

    def dense_logprobs(self, temperature: float = 1.0) -> Floats:
        """(R, W) log-probabilities of all ids."""
        if self.dense is None:
            raise _missing("dense")
        return self._logprobs(self.dense, self.ok[:, None], temperature)

    def own_logprobs(self, temperature: float = 1.0) -> Floats:
        """(R) log-probability of the token that really follows; NaN where none does."""
        if self.own_logit is None:
            raise _missing("own")
        found: Floats = np.where(self.ok, self.own_logit / np.float32(temperature) - self.lse_at(temperature), np.float32(np.nan))
        return found

    def gather_rows(self) -> npt.NDArray[np.int64]:
        """The row of each gathered number."""
        if self.gather_at is None:
            raise _missing("gather")
        return np.repeat(np.arange(len(self)), np.diff(self.gather_at))

    def gathered_logprobs(self, temperature: float = 1.0) -> Floats:
        """Log-probabilities at gather_ids."""
        if self.gathered is None:
            raise _missing("gather")
        rows = self.gather_rows()
        values = self.gathered / np.float32(temperature) - self.lse_at(temperature)[rows]
        found: Floats = np.where(self.ok[rows], values, np.float32(-np.inf))
        return found

    def draw_rows(self) -> npt.NDArray[np.int64]:
        """The row of each drawn id."""
        if self.draw_at is None:
            raise _missing("draws")
        return np.repeat(np.arange(len(self)), np.diff(self.draw_at))

    def draw_weights(self) -> Floats:
        """Importance weights of the drawn ids: their expectation is the probability (with draws from the tail: outside the top-k)."""
        if self.draw_counts is None or self.query.draws is None:
            raise _missing("draws")
        logs: npt.NDArray[np.float64] = np.zeros(len(self.draw_counts))
        if self.draw_log_ratios is not None:
            logs = self.draw_log_ratios.astype(np.float64)
        elif self.query.draws.tail and self.tail is not None:
            logs = self.tail.astype(np.float64)[self.draw_rows()]
        weights = self.draw_counts * np.exp(logs) / self.query.draws.n    # as the server's: rounded once
        return weights.astype(np.float32)

    def arrays(self) -> Dict[str, npt.NDArray[Any]]:
        """All arrays by name but the tokens; features as "features.0", ..."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray) and name != "tokens"}
        found.update(("features.%d" % i, value) for i, value in enumerate(self.features or []))
        return found

    def to_torch(self) -> Dict[str, Any]:
        """The arrays as torch tensors that share their memory; ids are int64, as torch's gather wants them."""
        import torch    # only here: the package needs numpy alone

        return {name: torch.from_numpy(value) for name, value in self.arrays().items()}

    def _logprobs(self, logits: Floats, there: Bools, temperature: float) -> Floats:
        found: Floats = np.where(there, logits / np.float32(temperature) - self.lse_at(temperature)[:, None], np.float32(-np.inf))
        return found


def stack(rows: Sequence[Rows]) -> Dict[str, npt.NDArray[Any]]:
    """Answers to one question as one batch: of each array that has a line per row (B, longest R, ...), with zeros (ids: -1) behind the
    shorter; `ok` is false there."""
    longest = max(len(r) for r in rows)
    first = rows[0].arrays()
    ragged = ("gather_at", "gather_ids", "gathered", "draw_at", "draw_ids", "draw_counts", "draw_log_ratios", "span_sums")
    batch: Dict[str, npt.NDArray[Any]] = {}
    for name, one in first.items():
        if name in ragged or (name.startswith("features.") and rows[0].query.pooling != "none"):
            continue
        batch[name] = np.full((len(rows), longest) + one.shape[1:], -1 if name == "ids" else 0, one.dtype)
        for i, r in enumerate(rows):
            batch[name][i, :len(r)] = r.arrays()[name]
    return batch
