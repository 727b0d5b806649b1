"""Loops that torch has in no such form, compiled by numba when they are first needed.

Each gives the bits of torch's own operators, or is not used. Draws, AdamW and what attention does with pairs of frames
are tried before their first use, where that is (`draws.py`, `train/optim.py`, `model/encoder/fused/attention.py`);
of one product, as dropout's, there is one result. Where numba is missing or a result is another (a processor for which
torch draws otherwise, another release), torch's own run.
"""
