"""A recording of the reference, fed to the candidate's own modules: which of them is another function?

Each call gets the reference's inputs, weights, buffers, mode and random state, and what comes out is compared with
what the reference recorded; backward, it gets the recorded gradients of its outputs. So every faulty module is found at
once, and one that only passed on an error is not blamed. Read `replay` first (the order of a step), then `calls` and
`frames` (a module's own code alone), `gradients` (sums over calls), `deviation` (how far apart).
"""

from nest_ssl.replay.replay import replay

__all__ = ["replay"]
