"""One-dimensional convolutions of codecs: causal or centred, weight- or group-normalised,
streamable.

Padding follows SEANet (EnCodec): an input of T steps gives ceil(T / stride) outputs; causal layers
pad kernel - stride steps on the left, centred ones split them with the larger half on the left.
With even strides, and with inputs that are multiples of odd ones, this is also the padding of DAC
and Oobleck.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgen.nn.norm import TimeGroupNorm, weight_norm
from mgen.nn.streaming import State
from mgen.typing import Array, Float

NORMS = ("none", "weight", "time_group")
PAD_MODES = ("constant", "reflect")
# Uniform in +-1/sqrt(fan_in): what the released codecs were initialised with.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def kernel_init(gain: float = 1.0) -> nn.initializers.Initializer:
    """`KERNEL_INIT` times `gain`; sqrt(3) keeps the level of white noise through a layer."""
    return nn.initializers.variance_scaling(gain**2 / 3, "fan_in", "uniform")


def pad_time(x: Float[Array, "B T C"], left: int, right: int, mode: str) -> Array:
    """Pads time by zeros ("constant") or by mirroring without the edge ("reflect").

    An input too short to mirror is extended by zeros first, and as many steps are taken off the end
    (EnCodec).
    """
    if mode == "constant":
        return jnp.pad(x, ((0, 0), (left, right), (0, 0)))
    shortfall = max(0, max(left, right) + 1 - x.shape[1])
    x = jnp.pad(x, ((0, 0), (0, shortfall), (0, 0)))
    x = jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode="reflect")
    return x[:, : x.shape[1] - shortfall]


def fold_stride(
    x: Float[Array, "B T I"], kernel: Float[Array, "K I O"], stride: int
) -> tuple[Float[Array, "B S J"], Float[Array, "L J O"]]:
    """An input and a kernel whose convolution without a stride is that of `x` and `kernel` with
    one: `stride` steps become channels of one step. T and K are multiples of it.

    XLA's gradient of a convolution with a stride puts zeros between the steps: on a CPU this form
    takes half of its time, for a TPU it moves half of its bytes (EnCodec's layers of stride 4).
    """
    folded = x.reshape(x.shape[0], -1, stride * x.shape[2])
    return folded, kernel.reshape(-1, folded.shape[2], kernel.shape[2])


class Conv1d(nn.Module):
    """Convolution over time, [B, T, in_features] -> [B, ceil(T / stride), features].

    Attributes:
      norm: "none", "weight" (one gain per output channel) or "time_group".
      pad_mode: "constant" or "reflect".
      pads: steps padded left and right in place of SEANet's, of a layer that is not causal.
      gain: factor on the initial kernel.
      dtype: computation dtype; parameters stay float32.
    """

    in_features: int
    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    pad_mode: str = "constant"
    pads: tuple[int, int] | None = None
    norm: str = "none"
    use_bias: bool = True
    gain: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @property
    def span(self) -> int:
        """Input steps under the dilated kernel."""
        return (self.kernel_size - 1) * self.dilation + 1

    @property
    def padding(self) -> tuple[int, int]:
        """Steps padded left and right of an input whose length is a multiple of the stride."""
        if self.pads is not None:
            return self.pads
        total = self.span - self.stride
        right = 0 if self.causal else total // 2
        return total - right, right

    def setup(self) -> None:
        if self.norm not in NORMS or self.pad_mode not in PAD_MODES:
            raise ValueError(
                f"norm {self.norm!r} of {NORMS}, pad_mode {self.pad_mode!r} of {PAD_MODES}"
            )
        if self.span < self.stride:
            raise ValueError(f"a kernel over {self.span} steps skips input at stride {self.stride}")
        shape = (self.kernel_size, self.in_features, self.features)
        self.kernel = self.param("kernel", kernel_init(self.gain), shape)
        if self.norm == "weight":
            self.scale = self.param(
                "scale", lambda _: jnp.sqrt(jnp.sum(self.kernel**2, axis=(0, 1)))
            )
        if self.norm == "time_group":
            self.group_norm = TimeGroupNorm(self.features)
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B U O"]:
        left, right = self.padding
        return self._valid(pad_time(x, left, right + -x.shape[1] % self.stride, self.pad_mode))

    def weight(self) -> Float[Array, "K I O"]:
        """The kernel, of its norm."""
        if self.norm != "weight":
            return self.kernel
        return weight_norm(self.kernel, self.scale, axes=(0, 1))

    def _valid(self, x: Array) -> Array:
        x, kernel, stride = x.astype(self.dtype), self.weight().astype(self.dtype), self.stride
        if stride > 1 and self.kernel_size % stride == 0 and self.dilation == 1:
            x, kernel, stride = *fold_stride(x, kernel, stride), 1
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,),
            "VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        if self.use_bias:
            y = y + self.bias.astype(self.dtype)[None, None]
        return self.group_norm(y) if self.norm == "time_group" else y

    def init_state(self, batch: int) -> State:
        """The left context: zeros, or None under "reflect", whose context is mirrored from the
        first block.
        """
        if not self.causal or self.norm == "time_group":
            raise ValueError("only a causal convolution without time_group norm can stream")
        if self.pad_mode == "reflect" and self.padding[0]:
            return None
        return jnp.zeros((batch, self.padding[0], self.in_features), self.dtype)

    def step(self, state: State, block: Array) -> tuple[State, Array]:
        """Raises `ValueError` for a block that is no multiple of the stride or a first one too
        short to mirror.
        """
        left, length = self.padding[0], block.shape[1]
        if length % self.stride:
            raise ValueError(
                f"a block of {length} steps is no multiple of the stride {self.stride}"
            )
        if state is None:
            if length <= left:
                raise ValueError(
                    f"the first block has {length} steps here; mirroring needs at least {left + 1}"
                )
            x = pad_time(block, left, 0, self.pad_mode)
        else:
            x = jnp.concatenate([state.astype(block.dtype), block], axis=1)
        return x[:, x.shape[1] - left :], self._valid(x)


class ConvTranspose1d(nn.Module):
    """Transposed convolution over time, [B, F, in_features] -> [B, F stride, features].

    Of the kernel_size - stride surplus steps a causal layer trims all on the right, a centred one
    the larger half on the left. `output_padding` False trims one step more where the surplus is
    odd, as DAC's published decoder does, and the output is one step short. Computed as an ordinary
    convolution to stride x features channels that are then interleaved (sub-pixel form).

    Attributes: as `Conv1d`; weight norm has one gain per input channel, as PyTorch's default for
    this layer.
    """

    in_features: int
    features: int
    kernel_size: int
    stride: int
    causal: bool = False
    norm: str = "none"
    output_padding: bool = True
    gain: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @property
    def trim(self) -> tuple[int, int]:
        """Steps trimmed from the left and the right of the full output."""
        total = self.kernel_size - self.stride
        right = total if self.causal else total // 2
        left = total - right
        return left, right if self.output_padding else max(left, right)

    def setup(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r}, expected one of {NORMS}")
        if self.kernel_size < self.stride:
            raise ValueError(f"kernel {self.kernel_size} leaves gaps at stride {self.stride}")
        shape = (self.kernel_size, self.in_features, self.features)
        self.kernel = self.param("kernel", kernel_init(self.gain), shape)
        if self.norm == "weight":
            self.scale_in = self.param(
                "scale_in", lambda _: jnp.sqrt(jnp.sum(self.kernel**2, axis=(0, 2)))
            )
        if self.norm == "time_group":
            self.group_norm = TimeGroupNorm(self.features)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: Float[Array, "B F I"]) -> Float[Array, "B T O"]:
        y = self._full(x) + self.bias.astype(self.dtype)[None, None]
        if self.norm == "time_group":
            y = self.group_norm(y)
        left, right = self.trim
        return y[:, left : y.shape[1] - right]

    def _full(self, x: Array) -> Array:
        """[B, F, in] -> [B, (F - 1) stride + kernel_size, out]: y[j s + r] += x[j] w[r]."""
        kernel = self.kernel
        if self.norm == "weight":
            kernel = weight_norm(kernel, self.scale_in, axes=(0, 2))
        taps = -(-self.kernel_size // self.stride)
        kernel = jnp.pad(kernel, ((0, taps * self.stride - self.kernel_size), (0, 0), (0, 0)))
        kernel = kernel.reshape(taps, self.stride, self.in_features, self.features)[::-1]
        kernel = kernel.transpose(0, 2, 1, 3).reshape(taps, self.in_features, -1)
        # Padded outside: the kernel gradient of a padded convolution is 25 times slower on the CPU.
        y = jax.lax.conv_general_dilated(
            jnp.pad(x.astype(self.dtype), ((0, 0), (taps - 1, taps - 1), (0, 0))),
            kernel.astype(self.dtype),
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        y = y.reshape(x.shape[0], -1, self.features)
        return y[:, : (x.shape[1] - 1) * self.stride + self.kernel_size]

    def init_state(self, batch: int) -> State:
        """The part of past outputs that reaches into the next block, before the bias."""
        if not self.causal or self.norm == "time_group":
            raise ValueError("only a causal convolution without time_group norm can stream")
        return jnp.zeros((batch, self.kernel_size - self.stride, self.features), self.dtype)

    def step(self, state: State, block: Array) -> tuple[State, Array]:
        y = self._full(block)
        y = y.at[:, : state.shape[1]].add(state)
        length = block.shape[1] * self.stride
        return y[:, length:], y[:, :length] + self.bias.astype(self.dtype)[None, None]
