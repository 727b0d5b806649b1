"""Observers of a live model: torch and, of this package, only the contract, so that any trainer can be recorded.

Read `loop` first, the public API, then `session`, the order of a step; `levels` says how much of one is recorded.
`observers` watch one thing each (calls, draws, parameters), `lightning` says which of Lightning's hooks is which
boundary, `structure` and `provenance` describe what is trained and where, `secrets` keeps passwords out.
"""
