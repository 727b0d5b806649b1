"""The bytes of two tensors held against each other where they lie, by the C library."""

from __future__ import annotations

import ctypes
import os

import torch

# 14 GB/s, where torch.equal compares 5 in elements of four bytes.
_memcmp = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memcmp
_memcmp.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t


def lies_plain(tensor: torch.Tensor) -> bool:
    """Whether its bytes in memory are its elements in their order, and no more."""
    dense = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not dense or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return False
    return not (tensor.is_neg() or tensor.is_conj() or tensor.is_quantized)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of two that lie plain."""
    return one.nbytes == other.nbytes and not _memcmp(one.data_ptr(), other.data_ptr(), one.nbytes)
