"""Weight norm folded into plain kernels: what inference runs, and how weights without it are
trained on.
"""

from typing import Any

import jax.numpy as jnp

from mgen.codec.config import CodecConfig
from mgen.nn.norm import weight_norm
from mgen.typing import Array, Params

# Name of the gain -> axes over which its direction is normalised.
GAINS = {"scale": (0, 1), "scale_in": (0, 2)}
FACTORS = ("in", "out")


def fold_weight_norm(config: CodecConfig, params: Params) -> tuple[CodecConfig, Params]:
    """The same codec with `norm="none"`; other norms are returned as they are."""
    if config.norm != "weight":
        return config, params
    return config.replace(norm="none"), _fold(params)


def unfold_weight_norm(config: CodecConfig, params: Params) -> tuple[CodecConfig, Params]:
    """The same codec with `norm="weight"` from plain kernels: directions are the kernels, gains
    their norms.
    """
    if config.norm != "none":
        return config, params
    return config.replace(norm="weight"), _unfold(params)


def _fold(node: dict[str, Any]) -> dict[str, Any]:
    if "codebook" in node:  # Factorised quantiser: kernels stacked over levels.
        gains = {f"{side}_scale": (f"{side}_kernel", (1,)) for side in FACTORS}
    else:
        gains = {name: ("kernel", axes) for name, axes in GAINS.items() if "kernel" in node}
    folded = {
        name: _fold(child) if isinstance(child, dict) else child
        for name, child in node.items()
        if name not in gains
    }
    for name, (kernel, axes) in gains.items():
        if name in node:
            folded[kernel] = weight_norm(node[kernel], node[name], axes)
    return folded


def _unfold(node: dict[str, Any], name: str = "") -> dict[str, Any]:
    unfolded = {
        key: _unfold(child, key) if isinstance(child, dict) else child
        for key, child in node.items()
    }
    if "codebook" in node:
        for side in FACTORS:
            unfolded[f"{side}_scale"] = _norm(node[f"{side}_kernel"], (1,))
    elif "kernel" in node:
        gain = "scale_in" if name.endswith("_up") else "scale"
        unfolded[gain] = _norm(node["kernel"], GAINS[gain])
    return unfolded


def _norm(kernel: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=axes))
