"""Layers that every family shares: convolutions, norms, activations, recurrences, the streaming
contract.

Linen modules take plain fields and explicit input widths; arrays are [B, T, C]. A causal layer also
has `init_state` and `step` (see `streaming.py`). May import `mgen.typing` only; every family may
import it.
"""
