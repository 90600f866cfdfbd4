# SPDX-License-Identifier: Apache-2.0
# Writes dtype_golden.h: one pseudo-random block of each quantised type and what the Python package `gguf` makes of it.
# Needs gguf and numpy (pip install gguf==0.19.0); the test itself needs neither.
import numpy as np
from gguf import GGMLQuantizationType as T, quants
from gguf.constants import GGML_QUANT_SIZES

# Where the scales are. MXFP4's is a power of two, the least of them subnormal; IQ1_M's lies in the high nibbles of four numbers.
SCALES = [("Q8_0", [0]), ("Q4_0", [0]), ("Q4_1", [0, 2]), ("Q5_0", [0]), ("Q5_1", [0, 2]), ("Q4_K", [0, 2]), ("Q5_K", [0, 2]), ("Q6_K", [208]),
          ("Q2_K", [80, 82]), ("Q3_K", [108]), ("IQ4_NL", [0]), ("IQ4_XS", [0]), ("TQ1_0", [52]), ("TQ2_0", [64]),
          ("MXFP4", 0), ("MXFP4", 1), ("MXFP4", 2), ("MXFP4", 125),
          ("IQ1_S", [0]), ("IQ1_M", None), ("IQ2_XXS", [0]), ("IQ2_XS", [0]), ("IQ2_S", [0]), ("IQ3_XXS", [0]), ("IQ3_S", [0])]
random = np.random.default_rng(20240607)
print("// SPDX-License-Identifier: Apache-2.0")
print("// Made by dtype_golden.py from gguf.quants.dequantize. Values are the bits of each float.")
print("static const struct {\n\tenum dtype dtype;\n\tuint8_t block[210];\n\tuint32_t values[256];\n} golden[] = {")
for name, scales in SCALES:
    n_values, n_bytes = GGML_QUANT_SIZES[T[name]]
    block = random.integers(0, 256, n_bytes, dtype=np.uint8)
    if name == "MXFP4":
        block[0] = scales
    if name == "IQ1_M":
        half = int(np.float16(random.normal(0, 0.05)).view(np.uint16))
        block[49:56:2] = [(block[49 + 2 * i] & 15) | (half >> 4 * i & 15) << 4 for i in range(4)]
    for offset in scales if isinstance(scales, list) else []:      # a finite scale of ordinary size
        block[offset:offset + 2] = np.frombuffer(np.float16(random.normal(0, 0.05)).tobytes(), np.uint8)
    values = quants.dequantize(block.reshape(1, -1), T[name]).reshape(-1)
    assert values.size == n_values and np.isfinite(values).all()
    print("\t{DTYPE_%s, {" % name)
    for i in range(0, n_bytes, 24):
        print("\t\t" + " ".join("%d," % b for b in block[i:i + 24]))
    print("\t}, {")
    bits = values.astype(np.float32).view(np.uint32)
    for i in range(0, n_values, 8):
        print("\t\t" + " ".join("0x%08x," % b for b in bits[i:i + 8]))
    print("\t}},")
print("};")
