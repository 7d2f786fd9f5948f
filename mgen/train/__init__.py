"""Training: one loop for every family, its state, optimiser, checkpoints and metric writers.

`loop.py` reads top to bottom and imports no family. A family's `task.py` (and only that file) may
import `state`, `optim` and `task` from here; everything else arrives through a config. Nothing here
knows about audio or tokens.
"""
