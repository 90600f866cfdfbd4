# SPDX-License-Identifier: Apache-2.0
"""Asks a kdserved server what its teacher thinks.

    from kdclient import Teacher
    teacher = Teacher.connect("unix:/run/kdserved/kdserved.sock")
    rows = teacher.score([1, 2, 3], top_k=64, own=True)
    rows.ids, rows.logprobs(), rows.own_logprobs()
"""
from .aio import AsyncPending, AsyncTeacher, Tokenized
from .errors import KdError
from .frame import Info
from .generate import Sample, Sampling
from .job import Reconnect
from .query import Draws, Feature, Query, Question
from .record import decode as decode_record
from .record import split as split_records
from .rows import Rows, stack
from .store import Store
from .teacher import Pending, Teacher

__version__ = "0.1.0"
__all__ = ["AsyncPending", "AsyncTeacher", "Draws", "Feature", "Info", "KdError", "Pending", "Query", "Question", "Reconnect",
           "Rows", "Sample", "Sampling", "Store", "Teacher", "Tokenized", "decode_record", "split_records", "stack"]
