"""Loops that torch has in no such form, compiled by numba when they are first needed.

Each gives the bits of torch's own operators, or is not used: `available.py` tries them before the first use, and where
numba is missing or a result is another (a processor for which torch draws otherwise, another release), torch's own run.
"""
