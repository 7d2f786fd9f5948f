"""Guidance: a denoiser from the estimates of several, all of x_0.

`Variants` gives them at once, [G, *x.shape]: one batch through a conditional network, or several
networks by `stacked`. What is linear in estimates is linear in scores: D = (x + sigma^2 score) /
alpha.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp

from mgen.diffusion.process import Denoiser
from mgen.typing import Array

Variants: TypeAlias = Callable[[Array, Array], Array]
# A number, or a function of t.
Weight: TypeAlias = float | Array | Callable[[Array], Array]


def stacked(*denoisers: Denoiser) -> Variants:
    """Of denoisers that are evaluated one after the other."""
    return lambda x, t: jnp.stack([denoise(x, t) for denoise in denoisers])


def within(weight: float, low: float, high: float) -> Callable[[Array], Array]:
    """A weight at times in (low, high], 1 outside, which is no guidance (Kynkäänniemi et al.
    2024)."""
    return lambda t: jnp.where((low < t) & (t <= high), weight, 1.0)


def guided(variants: Variants, *weights: Weight) -> Denoiser:
    """D_0 + sum_g weights[g] (D_g - D_0): classifier-free guidance (Ho and Salimans 2022), where 0
    is the unconditional estimate, or autoguidance (Karras et al. 2024), where it is that of a worse
    model; with more weights the sum over conditions (Liu et al. 2022)."""

    def denoise(x: Array, t: Array) -> Array:
        base, *others = _unstacked(variants(x, t), len(weights))
        terms = [_value(w, t) * (other - base) for w, other in zip(weights, others)]
        return base + sum(terms)

    return denoise


def rescaled(variants: Variants, weight: Weight, share: float) -> Denoiser:
    """Guidance with a `share` of its excess in standard deviation taken back, for each example (Lin
    et al. 2024, equations 15 and 16, with share 0.7)."""

    def denoise(x: Array, t: Array) -> Array:
        base, conditional = _unstacked(variants(x, t), 1)
        strong = base + _value(weight, t) * (conditional - base)
        axes = tuple(range(1, x.ndim))
        wanted, found = (jnp.std(y, axis=axes, keepdims=True) for y in (conditional, strong))
        scale = jnp.where(found == 0, 1.0, wanted / jnp.where(found == 0, 1.0, found))
        return (share * scale + 1.0 - share) * strong

    return denoise


def projected(
    variants: Variants, weight: Weight, parallel: float = 0.0, limit: float = jnp.inf
) -> Denoiser:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1, without momentum), which large
    weights do not oversaturate.

    Args:
      parallel: their eta, weight of the part of the difference D_1 - D_0 that points along D_1.
      limit: their r, largest norm of that difference, for each example.
    """

    def denoise(x: Array, t: Array) -> Array:
        base, conditional = _unstacked(variants(x, t), 1)
        difference, axes = conditional - base, tuple(range(1, x.ndim))

        def dot(a: Array, b: Array) -> Array:
            return jnp.sum(a * b, axis=axes, keepdims=True)

        norm = jnp.sqrt(dot(difference, difference))
        difference = difference * jnp.minimum(1.0, limit / jnp.where(norm == 0, 1.0, norm))
        square = dot(conditional, conditional)
        along = dot(difference, conditional) / jnp.where(square == 0, 1.0, square) * conditional
        across = difference - along
        return conditional + (_value(weight, t) - 1.0) * (across + parallel * along)

    return denoise


def _unstacked(estimates: Array, others: int) -> tuple[Array, ...]:
    if estimates.shape[0] != others + 1:
        raise ValueError(f"{estimates.shape[0]} estimates, expected 1 and one for each weight")
    return tuple(estimates)


def _value(weight: Weight, t: Array) -> Array | float:
    return weight(t) if callable(weight) else weight
