"""Loops that torch has in no such form, compiled by numba when they are first needed.

Each gives the bits of torch's own operators, or is not used. Draws and AdamW are tried before their first use, where
they are used (`draws.py`, `train/optim.py`); where numba is missing or a result is another (a processor for which torch
draws otherwise, another release), torch's own run.
"""
