"""Speed suites of `mgen benchmark`: one module a suite, whose `run()` returns the rows of a table.

A row is {suite, case, unit, ours, peer, ratio}; ratio > 1 where ours is better. Both sides are
timed in the same process tree and minutes, with equal threads, the peer set up at its best.
May import everything in `mgen` and, inside functions, the released peers (extra `parity`).
"""
