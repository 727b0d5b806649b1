"""Compares two recordings: `compare_recordings(reference, candidate)`."""

from nest_ssl.compare.ladder import compare_recordings
from nest_ssl.compare.rules.fixed import FixedTolerance

__all__ = ["FixedTolerance", "compare_recordings"]
