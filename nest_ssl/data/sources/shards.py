"""The names of shards: patterns written out, buckets, and the part that one process reads.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.data.audio_to_text.expand_sharded_filepaths` and
`audio_to_text_dataset.convert_to_config_list`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nest_ssl.base.errors import UserError

OPENING, CLOSING = ("(", "[", "<", "_OP_"), (")", "]", ">", "_CL_")  # instead of braces, which a shell would expand


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: ``audio_{0..2}.tar``, or ``audio__OP_0..2_CL_.tar``.

    Raises:
        UserError: braces that do not match.
    """
    import braceexpand

    for words, brace in ((OPENING, "{"), (CLOSING, "}")):
        for word in words:
            pattern = pattern.replace(word, brace)
    try:
        return list(braceexpand.braceexpand(pattern, escape=False))
    except ValueError as error:
        raise UserError("a pattern whose braces do not match", pattern, "Write audio__OP_0..9_CL_.tar.") from error


def is_sharded(manifest: str) -> bool:
    """Whether NeMo takes a manifest's path for a pattern."""
    return "_OP_" in manifest and "_CL_" in manifest


def buckets_of(value: Any, key: str) -> list[list[str]]:
    """The paths of each bucket. A path, paths joined by commas, or a list of paths are one bucket; a list of lists of
    paths are several.

    Raises:
        UserError: neither.
    """
    given = value.split(",") if isinstance(value, str) else value
    nested = [part for part in given if not isinstance(part, str)] if isinstance(given, Sequence) else None
    buckets = given if nested else [given]
    if (
        nested is None
        or not given
        or (nested and len(nested) != len(given))
        or not all(
            bucket and isinstance(bucket, Sequence) and all(isinstance(path, str) for path in bucket)
            for bucket in buckets
        )
    ):
        raise UserError("not paths of shards", f"{key}={value!r}", "Give a path, a list of paths, or one for a bucket.")
    return [[str(path) for path in bucket] for bucket in buckets]


def tars_of(bucket: Sequence[str]) -> list[str]:
    """The tar files of a bucket; NeMo expands a pattern that stands alone, and takes several paths as they are."""
    return expand(bucket[0]) if len(bucket) == 1 else list(bucket)


def own_share(shards: Sequence[str], strategy: str, rank: int, world_size: int) -> Sequence[str]:
    """What one of several processes reads: a part of its own (``scatter``; what cannot be shared out evenly is read by
    none) or everything (``replicate``)."""
    if strategy == "replicate" or world_size == 1:
        return shards
    share = len(shards) // world_size
    return shards[rank * share : (rank + 1) * share]
