#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: gguf_to_bf16.py IN.gguf OUT.gguf [BF16|F32]: the same model with its matrices dequantised (needs the Python package gguf)."""
import sys

import gguf
import numpy as np

SKIP = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type", "general.quantization_version"}


def copy_fields(reader, writer):
    for field in reader.fields.values():
        if field.name in SKIP:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)


def main():
    source, target = sys.argv[1:3]
    kind = gguf.GGMLQuantizationType[sys.argv[3] if len(sys.argv) > 3 else "BF16"]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    writer.add_file_type(32 if kind == gguf.GGMLQuantizationType.BF16 else 0)
    copy_fields(reader, writer)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 2:
            values = gguf.quants.quantize(values, kind)
            writer.add_tensor(tensor.name, values, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
