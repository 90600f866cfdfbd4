# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, with a code for the program, a sentence for the person and the field to mend."""
from __future__ import annotations


class KdError(Exception):
    """`code` is one of kdserved-protocol(7)'s, `field` what to mend (may be empty), `message` a sentence."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(code, message, field)
        self.code, self.message, self.field = code, message, field

    def __str__(self) -> str:
        return "%s: %s" % (self.code, ("%s: %s" % (self.field, self.message)) if self.field else self.message)
