"""ResNet on a log-mel spectrogram as a one-channel image: MuLan's smaller audio tower is ResNet-50
(He et al. 2016; Huang et al. 2022).

Bottleneck blocks that stride in their 3x3 convolution ("v1.5"). Group norm (Wu & He 2018) in place
of batch norm keeps an example's embedding independent of its batch mates, in training too.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mgen.errors import UserError
from mgen.joint.towers import Embedded, check_choices
from mgen.typing import Array, Float

# Outputs of a bottleneck block per unit of its inner width.
EXPANSION = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Shape of a ResNet; the defaults are ResNet-50.

    Attributes:
      blocks: bottleneck blocks of each stage; from the second on, a stage halves the map.
      width: channels of the stem and inner width of the first stage, doubled by every further one.
      groups: of the group norms; a divisor of `width`.
      norm_epsilon: what is added to the variance.
      dtype: compute dtype; parameters stay float32.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    groups: int = 32
    norm_epsilon: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choices(self, "model.audio", {})
        if self.width % self.groups:
            raise UserError(
                f"model.audio.groups is {self.groups}, expected a divisor of width {self.width}"
            )

    @property
    def dim(self) -> int:
        """Width D of the embedding: 2048 for ResNet-50."""
        return EXPANSION * self.width * 2 ** (len(self.blocks) - 1)


def convolution(
    config: ResNetConfig, features: int, kernel: int, stride: int, name: str
) -> nn.Module:
    """Convolution without bias, padded by half of its kernel on either side."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=config.dtype,
        name=name,
    )


def group_norm(config: ResNetConfig, name: str, **options: Any) -> nn.Module:
    return nn.GroupNorm(
        num_groups=config.groups,
        epsilon=config.norm_epsilon,
        use_fast_variance=False,
        dtype=config.dtype,
        name=name,
        **options,
    )


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 with the stride, 1x1 to four times `width`; projected shortcut where the
    shape changes."""

    config: ResNetConfig
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B F M C"]) -> Float[Array, "B F2 M2 C2"]:
        config, outputs = self.config, EXPANSION * self.width
        y = convolution(config, self.width, 1, 1, "conv_0")(x)
        y = nn.relu(group_norm(config, "norm_0")(y))
        y = convolution(config, self.width, 3, self.stride, "conv_1")(y)
        y = nn.relu(group_norm(config, "norm_1")(y))
        y = convolution(config, outputs, 1, 1, "conv_2")(y)
        # Starting as the identity is what makes deep stacks train (Goyal et al. 2017, section 5.1).
        y = group_norm(config, "norm_2", scale_init=nn.initializers.zeros)(y)
        if x.shape[-1] != outputs or self.stride != 1:
            x = convolution(config, outputs, 1, self.stride, "conv_shortcut")(x)
            x = group_norm(config, "norm_shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Spectrogram to vectors: mean of the last map; `tokens` are its positions, frame by frame."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "B F M"], train: bool = False) -> Embedded:
        """The pooled spectrogram, of any size. Each stage but the first halves the quarter map
        that the stem leaves, so with four stages the last map has 1/32 of the frames and bins,
        rounded up. `train` is there for the towers' common call; nothing here depends on it.
        """
        config = self.config
        x = convolution(config, config.width, 7, 2, "conv_in")(mel[..., None])
        x = nn.relu(group_norm(config, "norm_in")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(config.blocks):
            for i in range(count):
                stride = 2 if stage and not i else 1
                x = Bottleneck(config, config.width * 2**stage, stride, name=f"stage_{stage}_{i}")(
                    x
                )
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return Embedded(jnp.mean(tokens.astype(jnp.float32), axis=1), tokens)
