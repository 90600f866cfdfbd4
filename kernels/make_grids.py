#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes kernels/dtype_grid.h: the points that ggml's IQ1, IQ2 and IQ3 types choose from, which are part of their format.

    python3 kernels/make_grids.py > kernels/dtype_grid.h      needs gguf and numpy (pip install gguf==0.19.0)
"""
import numpy as np
from gguf import quants

# name, class, bits of a code, what it is in the type's words
GRIDS = [("iq2_xxs", quants.IQ2_XXS, 2, "8 of 8, 25, 43"), ("iq2_xs", quants.IQ2_XS, 2, "8 of 8, 25, 43"), ("iq2_s", quants.IQ2_S, 2, "8 of 8, 25, 43"),
         ("iq3_xxs", quants.IQ3_XXS, 3, "4 of 4, 12, 20, 28, 36, 44, 52, 62"), ("iq3_s", quants.IQ3_S, 3, "4 of 1, 3, 5, 7, 9, 11, 13, 15"),
         ("iq1", quants.IQ1_S, 2, "8 of -1, 0, 1")]

print("""// SPDX-License-Identifier: Apache-2.0
// Points of the grids that ggml's IQ1, IQ2 and IQ3 types choose from. Made by kernels/make_grids.py from the Python package gguf (MIT licence,
// the ggml authors): do not edit. A point is its numbers as codes (which of the numbers named), the first in the lowest bits.
#pragma once

#include <stdint.h>""")
for name, kind, bits, what in GRIDS:
    kind.init_grid()
    points = kind.grid.reshape(kind.grid_shape)
    numbers = sorted(set(kind.grid_map))
    codes = sum(np.searchsorted(numbers, points[:, i]).astype(np.uint32) << (bits * i) for i in range(points.shape[1]))
    assert len(codes) & (len(codes) - 1) == 0 and int(codes.max()) < 65536
    assert what == "%d of %s" % (points.shape[1], ", ".join(map(str, numbers))), (what, numbers)
    print("\n// %s\nBLOCK_HELPER uint32_t block_grid_%s(uint32_t i)\n{\n\tstatic const uint16_t grid[%d] = {" % (what, name, len(codes)))
    for i in range(0, len(codes), 16):
        print("\t\t" + " ".join("0x%04x," % c for c in codes[i:i + 16]))
    print("\t};\n\treturn grid[i];\n}")
