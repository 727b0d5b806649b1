"""The self-test: what the comparer catches, measured by planting faults and correct rewrites in the port.

Read `catalogue/` first, a file for each kind of fault: a case is a line of the port's source, what takes its place, and
where the comparer must say that it was born. `cases` is their form; `planting` puts one into a process that was forked
for it (files on disk stay as they are); `trial` trains and compares it with all evidence; `runs` does so for all of
them and goes on where it stopped; `score` says what was caught.
"""
