"""The ground floor: what every room needs and none should write again. Nothing here imports another room.

Read `errors` (mistakes and exit codes) and `files` (durable writes, locks, hashes) first, then `nested` (tensors in
lists and dicts), `rng` (states of generators), `safe_load` (reading what strangers wrote).
"""
