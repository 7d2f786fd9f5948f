"""Meshes and the placement of state and batches.

Axes are `data`, `fsdp`, `tensor` and `seq`. Modules name logical axes; the rules that map them to
mesh axes live here. May import `mgen.typing` and `mgen.tree`; imported by the trainer and by the
families.
"""
