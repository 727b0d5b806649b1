"""A comparison to hand on: one file with report, indexes, digests or tensors, locks, and a statement over all of them.

Read in this order: archive (the container), statement (what is claimed, and the signature), contents (what goes in),
verify (what a stranger's machine can show again, and what it must believe).
"""
