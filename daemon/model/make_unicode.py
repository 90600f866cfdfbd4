#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes daemon/model/unicode_tables.c, or (with the argument wordpiece) unicode_wordpiece.c, from Unicode data.

    python3 -m pip install --target /tmp/ucd unicodedata2==16.0.0
    PYTHONPATH=/tmp/ucd python3 daemon/model/make_unicode.py > daemon/model/unicode_tables.c

Two versions on purpose. Classes follow Unicode 16.0, which the regular expressions of Hugging Face `tokenizers` 0.23 use.
Normalization follows Unicode 9.0, the data of its NFC: characters assigned later (perl's Present_In knows them) stay as they are,
which is all a later version could change, for the properties of assigned characters are stable.
What BERT's normalizer asks of a character follows Unicode 8.0 (categories) and 17.0 (lower case): as the reference's libraries do.
"""
import subprocess
import sys
import textwrap

import unicodedata2 as ucd

assert ucd.unidata_version == "16.0.0"
ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
SPACE = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
# Alphabetic without being a letter, mark or Nl: the circled and squared letters.
OTHER_ALPHABETIC = {*range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A), *range(0x1F150, 0x1F16A), *range(0x1F170, 0x1F18A)}


def char_class(c):
    category = ucd.category(chr(c))
    if category[0] == "L":
        return {"Lu": "UPPER", "Lt": "UPPER", "Ll": "LOWER"}.get(category, "CASELESS")
    if category[0] == "M":
        return "MARK"
    if category in ("Nd", "Nl"):
        return "NUMBER"
    if category == "No":
        return "NUMBER_NOT_WORD"
    if c in SPACE:
        return "SPACE"
    if category == "Pc" or c in (0x200C, 0x200D) or c in OTHER_ALPHABETIC:
        return "WORD"
    return "OTHER"


def assigned_in(version):
    program = r'for (0..0x10ffff) { next if $_ >= 0xd800 && $_ < 0xe000; print "$_\n" if chr($_) =~ /\p{Present_In: %s}/ }' % version
    return set(map(int, subprocess.run(["perl", "-e", program], check=True, capture_output=True, text=True).stdout.split()))


def table(kind, name, rows):
    """A flat array; `name`_n rows. Lines are filled to keep the file short."""
    print(f"\nconst size_t {name}_n = {len(rows)};\nconst {kind} {name}[] = {{")
    text = " ".join("".join(f"{number}," for number in row) for row in rows)
    print(textwrap.fill(text, 138, initial_indent="\t", subsequent_indent="\t", break_long_words=False, tabsize=1, expand_tabs=False))
    print("};")


def runs(value_of, skip):
    """Ranges (first, last, value) of equal neighbours, without those whose value is `skip`."""
    out = []
    for c in ALL:
        value = value_of(c)
        if value == skip:
            continue
        if out and out[-1][1] == c - 1 and out[-1][2] == value:
            out[-1][1] = c
        else:
            out.append([c, c, value])
    return out


def write_classes():
    changes, last = [], None
    for c in ALL:
        value = char_class(c)
        if value != last:
            changes.append((c, value))
            last = value
    names = ["OTHER", "UPPER", "LOWER", "CASELESS", "MARK", "NUMBER", "NUMBER_NOT_WORD", "SPACE", "WORD"]
    table("uint32_t", "unicode_class_changes", [(c << 4 | names.index(v),) for c, v in changes])


def write_normalization(known):
    nfc = lambda text: ucd.normalize("NFC", text)
    parts = {}
    for c in sorted(known):
        decomposition = ucd.decomposition(chr(c))
        if decomposition and decomposition[0] != "<":
            parts[c] = [int(x, 16) for x in decomposition.split()]
    compositions = sorted((p[0], p[1], c) for c, p in parts.items() if len(p) == 2 and nfc(chr(c)) == chr(c))
    seconds = {b for _, b, _ in compositions} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))

    def combining(c):
        return ucd.combining(chr(c)) if c in known else 0

    def unstable(c):
        return c in known and (c in seconds or combining(c) != 0 or nfc(chr(c)) != chr(c))

    table("uint32_t", "unicode_combining", runs(combining, 0))
    table("uint32_t", "unicode_unstable", [run[:2] for run in runs(unstable, False)])
    table("uint32_t", "unicode_decompositions", [(c, p[0], p[1] if len(p) == 2 else 0) for c, p in sorted(parts.items())])
    order = sorted(parts)
    table("uint16_t", "unicode_compositions", [(order.index(c),) for _, _, c in compositions])


# Categories that changed after 8.0, as they were.
WAS_PUNCTUATION = {0x166D, 0x111C9}
WAS_MARK, WAS_NO_MARK = {0x1734, 0x1171E}, {0x1885, 0x1886, 0xA9BD, 0x111C9}
# Lower case added after Python's own data (14.0 and later): (first, last, difference).
NEW_LOWER = [(0x1C89, 0x1C89, 1), (0xA7CB, 0xA7CB, 0x264 - 0xA7CB), (0xA7CC, 0xA7CC, 1), (0xA7CE, 0xA7CE, 1), (0xA7D2, 0xA7D2, 1),
             (0xA7D4, 0xA7D4, 1), (0xA7DA, 0xA7DA, 1), (0xA7DC, 0xA7DC, 0x19B - 0xA7DC), (0x10D50, 0x10D65, 0x20), (0x16EA0, 0x16EB8, 0x1B)]


def lower_rows():
    """(first, last, difference, step): runs of capitals that lie together, or every other one."""
    lower = {c: ord(chr(c).lower()) for c in ALL if len(chr(c).lower()) == 1 and chr(c).lower() != chr(c)}
    lower.update({c: c + d for first, last, d in NEW_LOWER for c in range(first, last + 1)})
    rows = []
    for c, to in sorted(lower.items()):
        last = rows[-1] if rows else None
        step = last and c - last[1]
        if last and to - c == last[2] and step in (1, 2) and (last[0] == last[1] or step == last[3]):
            last[1], last[3] = c, step
        else:
            rows.append([c, c, to - c, 1])
    return [(first, last, difference & 0xFFFFFFFF, step) for first, last, difference, step in rows]


def write_wordpiece():
    known = assigned_in("8.0")
    category = {c: ucd.category(chr(c)) for c in ALL}
    punctuation = {c for c in known if category[c][0] == "P"} | {c for c in range(33, 127) if not chr(c).isalnum()} | WAS_PUNCTUATION
    removed = {c for c in known if category[c] in ("Cc", "Cf", "Co")} - {9, 10, 13} | {0xFFFD}
    marks = ({c for c in known if category[c] == "Mn"} | WAS_MARK) - WAS_NO_MARK
    for name, members in ("unicode_punctuation", punctuation), ("unicode_removed", removed), ("unicode_marks", marks):
        table("uint32_t", name, [run[:2] for run in runs(lambda c, s=members: c in s, False)])
    table("uint32_t", "unicode_lower_runs", lower_rows())


print("// SPDX-License-Identifier: Apache-2.0")
if sys.argv[1:] == ["wordpiece"]:
    print("// Unicode tables of BERT's normalizer. Generated by daemon/model/make_unicode.py: do not edit.")
    print('#include "daemon/model/unicode.h"')
    write_wordpiece()
    sys.exit()
print("// Unicode tables of the tokenizer. Generated by daemon/model/make_unicode.py (classes: Unicode 16.0, NFC: Unicode 9.0): do not edit.")
print('#include "daemon/model/unicode.h"')
write_classes()
write_normalization(assigned_in("9.0"))
