"""A `.safetensors` file: numbers by their names, which every language reads and nothing in it runs.

Source: the safetensors format, version 0.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from torch import Tensor

DTYPES = {"torch.float32": "F32", "torch.int64": "I64"}


def safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A file's content: the length of a header, the header as JSON, and the tensors' bytes one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, tensor in sorted(tensors.items()):
        content = tensor.contiguous().numpy().tobytes()
        place = [end, end + len(content)]
        header[name] = {"dtype": DTYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": place}
        parts.append(content)
        end += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)
