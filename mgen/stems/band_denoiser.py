"""A denoiser of stems in the bands of their spectra: the network of the separator, which it is
compared with, told all noisy tracks and their noise levels (see `mgen.stems.bands`).

In each bin an estimate is a X_s / |X_s| + b Y: X_s the noisy track itself, over its level in the
band; Y the mix where that is a track, or the sum of the tracks. Where noise is all that a bin
holds, a = -1 is EDM's F; under much noise D is b times the mix, as the separator's.
"""

import flax.linen as nn
import jax.numpy as jnp

from mgen.errors import UserError
from mgen.stems.bands import BandStack, check_shape, features, join_bands, levelled, split_bands
from mgen.stems.config import BandDenoiserConfig
from mgen.stems.unet import NoiseEmbedding, check_levels
from mgen.typing import Array, Float


class BandDenoiser(nn.Module):
    """Tracks of some noise level to tracks, [B, S, T, C] to the same in float32; of the mix 0.

    What is put in and what the output means is the process's matter, see `UNet1d`.
    """

    config: BandDenoiserConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S T C"], noise: Float[Array, "B *S"]
    ) -> Float[Array, "B S T C"]:
        """Applies the network.

        Args:
          x: T is a multiple of `BandDenoiserConfig.hop`, and over half a window.
          noise: level as the process expresses it (EDM: ln(sigma) / 4), [B, S] with `per_track`,
            else [B].

        Raises:
          UserError: shapes that do not fit the config.
        """
        config, (batch, tracks, length, channels) = self.config, x.shape
        if tracks != config.stems:
            raise UserError(f"{tracks} tracks, expected {config.stems}")
        check_shape(config, "stems", length, channels)
        check_levels(config, x, noise)

        bands = split_bands(config, x.astype(jnp.float32).reshape(-1, length, channels))
        levelled_bands, level = levelled(bands)
        seen = jnp.broadcast_to(jnp.log(level[..., 0]), (*bands.shape[:3], 1))
        seen = jnp.concatenate([features(levelled_bands), seen], axis=-1)
        seen = jnp.moveaxis(seen.reshape(batch, tracks, *seen.shape[1:]), 1, 3)
        seen = seen.reshape(*seen.shape[:3], -1)

        first, shape = int(config.mix), (batch, tracks, *bands.shape[1:])
        own, whole = levelled_bands.reshape(shape)[:, first:], bands.reshape(shape)
        whole = whole[:, :1] if config.mix else jnp.sum(whole, axis=1, keepdims=True)
        condition = NoiseEmbedding(config, name="noise")(noise)
        stack = BandStack(config, 2 * (tracks - first), zero=True, name="stack")
        masks = jnp.split(stack(seen, condition), 2, axis=1)
        made = join_bands(config, masks[0] * own + masks[1] * whole, length)
        return jnp.pad(made, ((0, 0), (first, 0), (0, 0), (0, 0)))
