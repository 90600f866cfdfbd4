#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Public-domain prose for the quick start and the benches: Jane Austen's novels from Debian's r-cran-janeaustenr.

usage: prose.py PACKAGE.deb OUTPUT_DIRECTORY      writes one UTF-8 .txt file per novel

The package keeps each novel as an R character vector in a lazy-load database: per object a big-endian length and a zlib
stream holding R's XDR serialisation. Only what such a vector needs is read; anything else ends in an error.
"""
import os
import struct
import subprocess
import sys
import tempfile
import zlib

DATABASE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
STRING_VECTOR, STRING = 16, 9


def objects(database):
    """The decompressed objects, in file order."""
    at = 0
    while at < len(database):
        (size,) = struct.unpack_from(">I", database, at)
        stream = zlib.decompressobj()
        data = stream.decompress(database[at + 4:])
        if len(data) != size:
            raise ValueError(f"object at byte {at}: {len(data)} bytes, {size} stated")
        yield data
        at = len(database) - len(stream.unused_data)


def lines(data):
    """The strings of one serialised character vector."""
    at = 2 + 12                                          # "X\n", format version, writer, reader
    if struct.unpack_from(">I", data, 2)[0] >= 3:        # format 3 names its encoding
        at += 4 + struct.unpack_from(">I", data, at)[0]
    flags, count = struct.unpack_from(">II", data, at)
    if data[:2] != b"X\n" or flags & 0xff != STRING_VECTOR:
        raise ValueError("not a serialised character vector")
    at += 8
    for _ in range(count):
        flags, size = struct.unpack_from(">Ii", data, at)
        if flags & 0xff != STRING:
            raise ValueError(f"byte {at}: a string was expected")
        at += 8
        yield data[at:at + max(size, 0)].decode("utf-8")
        at += max(size, 0)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: prose.py PACKAGE.deb OUTPUT_DIRECTORY")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", sys.argv[1], folder], check=True)
        with open(os.path.join(folder, DATABASE), "rb") as file:
            database = file.read()
    os.makedirs(sys.argv[2], exist_ok=True)
    for data in objects(database):
        text = "\n".join(lines(data)) + "\n"
        name = text.split("\n", 1)[0].strip().lower().replace(" ", "-")
        with open(os.path.join(sys.argv[2], name + ".txt"), "w", encoding="utf-8") as file:
            file.write(text)
        print(f"{name}.txt: {len(text)} characters")


main()
