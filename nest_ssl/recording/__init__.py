"""The file contract: what a recording is on disk. The recorder writes it, the comparer reads it, they share no more.

Read `layout` (names of files), `index` (facts), `address` (what a thing is), `clock` (when it was), `calls` (a call of
a module, and who made its inputs), then `writer` and `reader`. `schema1` reads what was recorded before.
"""
