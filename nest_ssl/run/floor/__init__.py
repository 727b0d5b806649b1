"""The noise floor: what rounding alone can do to each tensor of a recorded step (`noise_floor: 8`, a file a step).

The step is trained again several times from the state in which it began, on the same random numbers, with weights,
buffers and audio one unit in the last place (ulp) away. Read `repeats` (when, and that nothing of it stays), `state`
(what a step starts from), `values` (what it leaves), `deviations` (how far from the recorded ones), `margins` (how
near a token was to being another).
"""
