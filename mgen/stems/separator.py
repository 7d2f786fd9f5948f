"""A separator trained by regression, the baseline of the diffusion models: a complex mask of the
mix for each stem, see `mgen.stems.bands`. Neither the gain of a mix nor that of a band matters."""

import flax.linen as nn
import jax.numpy as jnp

from mgen.stems.bands import BandStack, check_shape, features, join_bands, levelled, split_bands
from mgen.stems.config import SeparatorConfig
from mgen.typing import Array, Float


class Separator(nn.Module):
    """A mix to its stems, [B, T, C] to [B, S, T, C] in float32; they need not sum to it."""

    config: SeparatorConfig

    @nn.compact
    def __call__(self, mix: Float[Array, "B T C"]) -> Float[Array, "B S T C"]:
        """Applies the network.

        Args:
          mix: T is a multiple of `SeparatorConfig.hop`, and over half a window.

        Raises:
          UserError: shapes that do not fit the config.
        """
        config = self.config
        check_shape(config, "mix", *mix.shape[1:])
        bands = split_bands(config, mix.astype(jnp.float32))
        masks = BandStack(config, config.stems, name="stack")(features(levelled(bands)[0]))
        return join_bands(config, masks * bands[:, None], mix.shape[1])
