"""Taking a mix apart in latents: through the decoder, or with the mix as one more track.

Through the decoder the mix measures the latents z of the stems, y = A(z) = sum_s decode(z_s), and
`mgen.diffusion.posterior.measured` follows the gradient of its likelihood. A trained condition is
the plain alternative.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mgen.diffusion.posterior import measured, pigdm_variance
from mgen.diffusion.process import VARIANCE_EXPLODING, Denoiser, Process
from mgen.diffusion.trajectory import draw_noise
from mgen.typing import Array, Float, Key

# [B, S, F, D] to [B, S, T, C].
Decode = Callable[[Array], Array]
Measure = Callable[[Array], Array]


def in_parts(
    function: Callable[[Array], Array], frames: int = 0, context: int = 0
) -> Callable[[Float[Array, "B S F D"]], Float[Array, "B X T C"]]:
    """A function of latents to audio, [B, S, F, D] to [B, X, T, C], of so many frames at a time.

    The backward pass computes each part anew, so memory is bound by a part of frames + 2 context.

    Args:
      frames: 0 is all at once.
      context: frames on either side that a frame's audio depends on; with fewer than the decoder's
        receptive field, parts join only nearly.
    """

    def parts(latents: Array) -> Array:
        count, width = latents.shape[2], frames + 2 * context
        if not frames or count <= width:
            return function(latents)
        starts = np.arange(0, count, frames)
        # Parts at an end keep to it, where the decoder pads what others see as context.
        windows = np.clip(starts - context, 0, count - width)

        @jax.checkpoint
        def part(place: tuple[Array, Array]) -> Array:
            window, offset = place
            found = function(jax.lax.dynamic_slice_in_dim(latents, window, width, axis=2))
            hop = found.shape[2] // width
            found = jnp.pad(found, ((0, 0), (0, 0), (0, frames * hop), (0, 0)))
            return jax.lax.dynamic_slice_in_dim(found, offset * hop, frames * hop, axis=2)

        found = jax.lax.map(part, (jnp.asarray(windows), jnp.asarray(starts - windows)))
        whole = jnp.moveaxis(found, 0, 2)  # [B, X, parts, frames hop, C]
        whole = whole.reshape(*whole.shape[:2], -1, whole.shape[-1])
        return whole[:, :, : whole.shape[2] // (len(starts) * frames) * count]

    return parts


def mixture(
    decode: Decode, frames: int = 0, context: int = 0
) -> Callable[[Float[Array, "B S F D"]], Float[Array, "B 1 T C"]]:
    """The mix that latents decode to, as a function of them; see `in_parts`."""
    return in_parts(lambda z: jnp.sum(decode(z), axis=1, keepdims=True), frames, context)


def gram(measure: Measure, latents: Float[Array, "B S F D"], keys: Key) -> Float[Array, "B 1 1 1"]:
    """The mean diagonal of J J^T, J the Jacobian of `measure` at `latents`: how much of the
    variance of latents arrives in the mix (E |J^T v|^2 of white v, Hutchinson 1989, by one draw
    from each of `keys` [B])."""
    mix, pull = jax.vjp(measure, latents)
    (back,) = pull(draw_noise(keys, mix.shape[1:]))
    return jnp.sum(jnp.square(back), axis=(1, 2, 3), keepdims=True) / np.prod(mix.shape[1:])


def consistent(
    denoise: Denoiser,
    measure: Measure,
    mix: Float[Array, "B 1 T C"],
    *,
    gram: Float[Array, "B 1 1 1"] | float,
    std: Float[Array, "B 1 1 1"] | float,
    sigma_data: float = 1.0,
    process: Process = VARIANCE_EXPLODING,
) -> Denoiser:
    """Latents whose stems sum to `mix` up to N(0, std^2), by PiGDM: exact where the latents are
    normal with deviation `sigma_data` and J J^T is `gram` I, else approximate.

    Args:
      measure: of latents, see `mixture`.
      gram: see `gram`.
      std: what the codec leaves of a mix: the deviation of the sum of its decoded stems from it.
    """
    variance = pigdm_variance(sigma_data, std, gram, process)
    return measured(denoise, measure, mix, variance, process)


def beside_mix(denoise: Denoiser, mix: Float[Array, "#B 1 #F #D"]) -> Denoiser:
    """Of stems, from a denoiser of the mix and the stems: the mix is track 0 and always clean, its
    estimate is left out. `denoise` was trained so, with a noise level for each track."""

    def of_stems(x: Array, t: Array) -> Array:
        track = jnp.broadcast_to(mix.astype(x.dtype), x[:, :1].shape)
        levels = jnp.broadcast_to(t, (*x.shape[:2], 1, 1))
        levels = jnp.concatenate([jnp.zeros_like(levels[:, :1]), levels], axis=1)
        return denoise(jnp.concatenate([track, x], axis=1), levels)[:, 1:]

    return of_stems
