"""The fixtures of tests/compare, for reports on what they record."""

from tests.compare.conftest import copy, make, reference

__all__ = ["copy", "make", "reference"]
