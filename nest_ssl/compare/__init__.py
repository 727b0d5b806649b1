"""Compares two recordings, of any two trainers: see `ladder.py` for the order, `result.py` for what comes out."""

from nest_ssl.compare.ladder import compare_recordings
from nest_ssl.compare.tolerance import FixedTolerance, Tolerance

__all__ = ["FixedTolerance", "Tolerance", "compare_recordings"]
