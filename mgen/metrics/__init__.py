"""Objective metrics of audio, in JAX: pure functions on arrays.

Each names its source and the reference implementation it was checked against. May import
`mgen.audio`; families and `launch/` import it.
"""
