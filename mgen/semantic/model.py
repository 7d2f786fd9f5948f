"""The encoder (front end, projection, trunk) and the heads that its training needs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.nn import transformer
from mgen.nn.conformer import Conformer, ConformerConfig
from mgen.nn.norm import weight_norm
from mgen.nn.transformer import Transformer
from mgen.semantic import masking
from mgen.semantic.config import ConvFrontConfig, SemanticConfig, TargetConfig
from mgen.semantic.frontend import Front, gelu, prepare
from mgen.typing import Array, Bool, Float, Key, Params


class PositionalConv(nn.Module):
    """GELU of a grouped convolution over time, weight-normalised over everything but time (wav2vec
    2.0, section 2).

    Attributes:
      kernel_size, groups: of the convolution; an even kernel looks one step further back.
    """

    kernel_size: int
    groups: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B F D"]) -> Float[Array, "B F D"]:
        size, dim = self.kernel_size, x.shape[-1]
        width = dim // self.groups
        init = nn.initializers.normal((4 / (size * dim)) ** 0.5)
        direction = self.param("kernel", init, (size, width, dim))
        length = jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2)))
        scale = self.param("scale", lambda _: length)
        kernel = weight_norm(direction, scale, axes=(1, 2)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (dim,)).astype(self.dtype)
        left = size // 2
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (left, size - 1 - left), (0, 0)))
        # One convolution a group: the kernel gradient of a grouped one is 25 times slower on the
        # CPU.
        outputs = [
            jax.lax.conv_general_dilated(
                padded[..., start : start + width],
                kernel[..., start : start + width],
                (1,),
                "VALID",
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
            for start in range(0, dim, width)
        ]
        return gelu(jnp.concatenate(outputs, axis=-1) + bias[None, None])


class Encoder(nn.Module):
    """Audio to features of any layer."""

    config: SemanticConfig

    def setup(self) -> None:
        config = self.config
        trunk = config.trunk
        self.front = Front(config)
        norm = functools.partial(
            nn.LayerNorm, epsilon=config.norm_epsilon, dtype=trunk.dtype, use_fast_variance=False
        )
        if config.feature_norm:
            self.feature_norm = norm()
        self.projection = nn.Dense(trunk.dim, dtype=trunk.dtype)
        self.mask_embedding = self.param(
            "mask_embedding", nn.initializers.uniform(1.0), (trunk.dim,)
        )
        if config.position_kernel:
            self.positions = PositionalConv(
                config.position_kernel, config.position_groups, trunk.dtype
            )
        if self.post_norm:
            self.input_norm = norm()
        self.dropout = nn.Dropout(config.dropout)
        self.trunk = Conformer(trunk) if isinstance(trunk, ConformerConfig) else Transformer(trunk)

    @property
    def post_norm(self) -> bool:
        trunk = self.config.trunk
        return not isinstance(trunk, ConformerConfig) and trunk.norm_position == "post"

    def __call__(
        self,
        audio: Float[Array, "B T C"],
        mask: Bool[Array, "B F"] | None = None,
        noise_keys: Key | None = None,
        train: bool = False,
    ) -> Float[Array, "B F D"]:
        """The last layer's output.

        Args:
          mask: True at the frames to hide.
          noise_keys: one key an example to hide them by noise before the front end; None puts the
            learned embedding in their place behind it.
        """
        x = prepare(self.config, audio)
        if mask is not None and noise_keys is not None:
            front = self.config.front
            steps = front.hop if isinstance(front, ConvFrontConfig) else front.stack
            x, mask = masking.fill_noise(noise_keys, x, mask, steps), None
        return self.trunk(self.trunk_input(self.front(x), mask, train), train=train)

    def hidden_states(self, audio: Float[Array, "B T C"]) -> Float[Array, "N B F D"]:
        """The trunk's input and the output of each layer, N = layers + 1; the last one passes the
        final norm where there is one."""
        return self.encode(self.front(prepare(self.config, audio)))

    def encode(self, features: Float[Array, "B F E"]) -> Float[Array, "N B F D"]:
        """`hidden_states` of the front end's output."""
        return self.trunk.hidden_states(self.trunk_input(features, None, False))

    def trunk_input(self, features: Array, mask: Array | None, train: bool) -> Array:
        x = self.feature_norm(features) if self.config.feature_norm else features
        x = self.projection(x)
        if mask is not None:
            x = jnp.where(mask[..., None], self.mask_embedding.astype(x.dtype)[None, None], x)
        if self.config.position_kernel:
            x = x + self.positions(x)
        if self.post_norm:
            x = self.input_norm(x)
        return self.dropout(x, deterministic=not train)


class Heads(nn.Module):
    """Logits of the codes, and the constant-Q spectrum where it is a target."""

    config: TargetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B F D"]) -> tuple[Array, Array | None]:
        config = self.config
        shape = (config.codebooks, config.codebook_size)
        if config.head == "linear":
            logits = nn.DenseGeneral(shape, dtype=x.dtype, name="codes")(x)
        else:
            width = (config.codebooks, config.head_dim)
            query = nn.DenseGeneral(width, dtype=x.dtype, name="codes")(x)
            table = self.param("embedding", nn.initializers.normal(1.0), (*shape, config.head_dim))
            query, table = unit(query.astype(jnp.float32)), unit(table)
            logits = jnp.einsum("bfkd,kvd->bfkv", query, table) / config.temperature
        cqt = None
        if config.cqt_bins:
            cqt = nn.Dense(config.cqt_bins, dtype=x.dtype, name="cqt")(x).astype(jnp.float32)
        return logits.astype(jnp.float32), cqt


def unit(x: Array) -> Array:
    """Vectors of length one along the last axis; zero stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))


class Pretraining(nn.Module):
    """Encoder and heads, for training: parameters {"encoder", "heads"}."""

    config: SemanticConfig
    targets: TargetConfig

    @nn.compact
    def __call__(
        self,
        audio: Float[Array, "B T C"],
        mask: Bool[Array, "B F"] | None = None,
        noise_keys: Key | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B F K V"], Float[Array, "B F M"] | None]:
        x = Encoder(self.config, name="encoder")(audio, mask, noise_keys, train)
        return Heads(self.targets, name="heads")(x)


def encoder_params(params: Params) -> Params:
    """The encoder's part of the parameters of `Pretraining`; an encoder's own pass through."""
    return params.get("encoder", params)


def unstack_layers(params: Params) -> Params:
    """Parameters of an unrolled `Encoder` from those of a scanned one."""
    return {**params, "trunk": transformer.unstack_layers(params["trunk"])}


def stack_layers(params: Params) -> Params:
    """Inverse of `unstack_layers`."""
    return {**params, "trunk": transformer.stack_layers(params["trunk"])}
