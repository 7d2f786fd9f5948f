"""Inference with a trained codec: whole signals, chunks of long ones, streams.

Example:
    codec = FrozenCodec.from_trained(config, params, variables)
    codes = codec.encode(audio)                   # [B, T, C] -> int32 [B, F, K]
    audio = codec.decode(codes[..., :4])          # any number of levels
    for block in codec.decode_chunks(codes): ...  # bounded memory, no seams
    stream = codec.stream_encoder()               # causal codecs: block in, codes out
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.codec import chunked, receptive, vae
from mgen.codec.blocks import NamedLayers, decoder_layers, encoder_layers
from mgen.codec.config import CodecConfig
from mgen.codec.fold import fold_weight_norm
from mgen.codec.model import Codec
from mgen.errors import UserError
from mgen.nn.streaming import State
from mgen.typing import Array, Float, Int, Params, ndarray

CHUNK_SECONDS = 10.0
# Segments of a segmented codec that run as one batch.
SEGMENTS_AT_ONCE = 8
# A whole signal [B, T, C] or its consecutive blocks [B, t, C] of any lengths.
Blocks = ndarray | Array | Iterable[ndarray]


@dataclasses.dataclass(frozen=True)
class Stream:
    """One half of a codec as a stream: `state = init_state(batch)`, then `state, output =
    step(state, block)`.

    Attributes:
      init_state: batch -> state, a pytree.
      step: (state, block) -> (state, output); compiled once a block length, and once more for the
        first block where padding mirrors.
      first_block_frames: least length of the first block: 1, more where padding mirrors ("reflect")
        samples yet to come.
    """

    init_state: Callable[[int], State]
    step: Callable[[State, Array], tuple[State, Array]]
    first_block_frames: int


class FrozenCodec:
    """A codec's config and weights with jitted inference; weight norm is folded into the kernels.

    A codec defined on segments (EnCodec 48 kHz) encodes and decodes N overlapping ones: F = N x
    frames of a segment. Where it normalises, `encode_with_levels` also returns the level of each
    segment, which `decode` multiplies back.
    """

    def __init__(self, config: CodecConfig, params: Params, variables: Params | None = None):
        self.config, params = fold_weight_norm(config, params)
        self.variables = jax.tree.map(jnp.asarray, {"params": params, **(variables or {})})
        if config.bottleneck == "rvq" and "codebook" not in self.variables:
            raise UserError("codec weights: no collection 'codebook', expected with bottleneck rvq")
        self.model = Codec(self.config)

    @classmethod
    def from_trained(cls, config: Any, params: Params, variables: Params) -> "FrozenCodec":
        """From an experiment's config (its `model` fields count), the generator's parameters and
        the state's variables.
        """
        collections = {name: variables[name] for name in ("codebook",) if name in variables}
        return cls(CodecConfig.from_config(config.model), params, collections)

    def encode(
        self, audio: Float[Array, "B T C"], num_codebooks: int | None = None
    ) -> Int[Array, "B F K"]:
        """Codes of the first `num_codebooks` levels (all by default), the whole signal at once."""
        return self.encode_with_levels(audio, num_codebooks)[0]

    def encode_with_levels(
        self, audio: Float[Array, "B T C"], num_codebooks: int | None = None
    ) -> tuple[Array, Array]:
        """Codes and the levels [B, N] that the signal or its N segments were divided by (ones
        without `normalize`).
        """
        return self._encode(audio, self._levels_of_codes(num_codebooks))

    def decode(
        self, codes: Int[Array, "B F k"], levels: Float[Array, "B N"] | None = None
    ) -> Float[Array, "B T C"]:
        """Audio from codes of k <= K levels: F hop samples, or the N segments cross-faded."""
        self._levels_of_codes(codes.shape[-1])
        return self._decode(codes, levels)

    def encode_latents(self, audio: Float[Array, "B T C"]) -> Float[Array, "B F D"]:
        """Latents before the bottleneck (of a VAE: the mean)."""
        return self._encode(audio, 0)[0]

    def decode_latents(
        self, latents: Float[Array, "B F D"], levels: Float[Array, "B N"] | None = None
    ) -> Float[Array, "B T C"]:
        return self._decode(latents, levels)

    def encode_chunks(
        self,
        audio: Blocks,
        num_codebooks: int | None = None,
        seconds: float = CHUNK_SECONDS,
        latents: bool = False,
    ) -> Iterator[ndarray]:
        """Codes (or latents) of audio of any length in consecutive blocks [B, f, K], in memory
        bound by `seconds`.

        Joined they equal `encode` within rounding. Raises `UserError` for a codec that cannot be
        cut: time_group norm without segments, or a level of the whole signal.
        """
        levels = 0 if latents else self._levels_of_codes(num_codebooks)
        blocks: Iterator[ndarray] = (self._checked(block) for block in _blocks(audio))
        if self.config.segment_length:
            return self._encode_segments(blocks, levels)
        self._require_local()
        if self.config.align_input:
            blocks = chunked.align(blocks, self.config.hop)
        units = (self.config.hop, 1)
        parts = self._parts(encoder_layers(self.config), _encode_part, units, seconds, levels)
        return _pipe(blocks, parts)

    def decode_chunks(
        self, codes: Blocks, seconds: float = CHUNK_SECONDS, levels: ndarray | None = None
    ) -> Iterator[ndarray]:
        """Audio blocks [B, t, C] of codes or latents of any length, given whole or in blocks; see
        `encode_chunks`.
        """
        if self.config.segment_length:
            return iter([np.asarray(self._decode(_joined(codes), levels))])
        self._require_local()
        units = (1, self.config.hop)
        parts = self._parts(decoder_layers(self.config), _decode_part, units, seconds)
        return _pipe(_blocks(codes), parts)

    def encode_long(self, audio: Blocks, num_codebooks: int | None = None) -> ndarray:
        """`encode_chunks` joined: codes of an hour fit in memory where its activations do not."""
        return np.concatenate(list(self.encode_chunks(audio, num_codebooks)), axis=1)

    def decode_long(self, codes: Blocks, levels: ndarray | None = None) -> ndarray:
        """`decode_chunks` joined."""
        return np.concatenate(list(self.decode_chunks(codes, levels=levels)), axis=1)

    def stream_encoder(self, num_codebooks: int | None = None) -> Stream:
        """Blocks [B, n hop, C] in, codes [B, n, K] (latents without codebooks) out, equal to
        `encode`, with no delay.

        Mirrored padding ("reflect") looks ahead at the very start, hence a longer first block.
        Raises `UserError` for a codec that is not causal.
        """
        self._require_causal()
        levels = self._levels_of_codes(num_codebooks) if self.config.has_codes else 0
        first = receptive.first_block_frames(encoder_layers(self.config), self.config.hop)
        return self._stream(Codec.encoder_state, _encode_step, first, self.config.hop, (levels,))

    def stream_decoder(self) -> Stream:
        """Codes or latents [B, n, ...] in, audio [B, n hop, C] out, equal to `decode`; see
        `stream_encoder`.
        """
        self._require_causal()
        first = receptive.first_block_frames(decoder_layers(self.config), 1)
        return self._stream(Codec.decoder_state, _decode_step, first, 1, ())

    # Whole signals.

    def _encode(self, audio: Float[Array, "B T C"], codebooks: int) -> tuple[Array, Array]:
        audio = self._checked(audio)
        if self.config.segment_length:
            parts = list(self._encode_segments_with_levels([audio], codebooks))
            return tuple(jnp.concatenate(part, axis=1) for part in zip(*parts))  # type: ignore[return-value]
        return _apply(self.model, _encode_whole, (codebooks,), self.variables, audio)

    def _decode(self, x: Array | ndarray, levels: Array | ndarray | None) -> Array:
        if not self.config.segment_length:
            levels = jnp.ones((x.shape[0], 1)) if levels is None else jnp.asarray(levels)
            return _apply(self.model, _decode_whole, (), self.variables, x, levels[:, 0])
        frames = -(-self.config.segment_length // self.config.hop)
        if x.shape[1] % frames:
            raise UserError(
                f"{x.shape[1]} frames, expected a multiple of the {frames} of a segment"
            )
        count = x.shape[1] // frames
        levels = jnp.ones((x.shape[0], count)) if levels is None else jnp.asarray(levels)
        segments = np.asarray(x).reshape(x.shape[0], count, frames, -1)
        decoded = []
        for i in range(0, count, SEGMENTS_AT_ONCE):
            part = segments[:, i : i + SEGMENTS_AT_ONCE]
            flat = part.reshape(-1, *part.shape[2:])
            level = levels[:, i : i + SEGMENTS_AT_ONCE].reshape(-1)
            out = _apply(self.model, _decode_whole, (), self.variables, flat, level)
            decoded.append(np.asarray(out).reshape(*part.shape[:2], *out.shape[1:]))
        audio = np.concatenate(decoded, axis=1)[:, :, : self.config.segment_length]
        return jnp.asarray(chunked.overlap_add(audio, self.config.segment_stride))

    # Segments.

    def _encode_segments(self, blocks: Iterable[ndarray], codebooks: int) -> Iterator[ndarray]:
        for codes, _ in self._encode_segments_with_levels(blocks, codebooks):
            yield np.asarray(codes)

    def _encode_segments_with_levels(
        self, blocks: Iterable[Any], codebooks: int
    ) -> Iterator[tuple[Array, Array]]:
        """Codes [B, n frames, K] and levels [B, n] of `SEGMENTS_AT_ONCE` segments at a time, the
        last filled up with zeros.
        """
        length, stride = self.config.segment_length, self.config.segment_stride
        for part in _overlapping(blocks, length, stride, SEGMENTS_AT_ONCE):
            batch, count = part.shape[:2]
            flat = part.reshape(-1, *part.shape[2:])
            codes, level = _apply(self.model, _encode_whole, (codebooks,), self.variables, flat)
            yield codes.reshape(batch, count * codes.shape[1], -1), level.reshape(batch, count)

    # Chunks.

    def _parts(
        self,
        layers: NamedLayers,
        part: Callable[..., Array],
        units: tuple[int, int],
        seconds: float,
        *options: Any,
    ) -> list[Callable[[Iterable[ndarray]], Iterator[ndarray]]]:
        """The layers as runs of finite receptive field and the LSTM between them. `units`: input
        and output steps a frame.
        """
        names = [name for name, _ in layers]
        frames = max(1, round(seconds * self.config.frame_rate))
        if "lstm" not in names:
            return [self._run(layers, part, (None, None), units, frames, options)]
        at = names.index("lstm")
        half = "encoder" if part is _encode_part else "decoder"
        recurrence = chunked.Recurrence(
            init_state=layers[at][1].init_state,
            step=lambda *args: _apply(self.model, _lstm_step, (half,), self.variables, *args),
            frames=frames,
        )
        after = names[at + 1]
        return [
            self._run(layers[:at], part, (None, "lstm"), (units[0], 1), frames, options),
            recurrence,
            self._run(layers[at + 1 :], part, (after, None), (1, units[1]), frames, options),
        ]

    def _run(
        self,
        layers: NamedLayers,
        part: Callable[..., Array],
        ends: tuple[str | None, str | None],
        units: tuple[int, int],
        frames: int,
        options: tuple[Any, ...],
    ) -> chunked.Run:
        left, right = receptive.context(layers, *units)
        return chunked.Run(
            lambda x: _apply(self.model, part, (*ends, *options), self.variables, x),
            left,
            right,
            *units,
            frames + left + right,
        )

    # Streams.

    def _stream(
        self, init: Callable, step: Callable, first: int, unit: int, options: tuple[Any, ...]
    ) -> Stream:
        def init_state(batch: int) -> State:
            return (False, self.model.apply(self.variables, batch, method=init))

        def checked_step(state: State, block: Array) -> tuple[State, Array]:
            started, inner = state
            frames, rest = divmod(block.shape[1], unit)
            if rest or frames < (1 if started else first):
                least = 1 if started else first
                raise UserError(
                    f"a block of {block.shape[1]} steps, expected a multiple of {unit}, "
                    f"at least {least * unit}"
                )
            inner, output = _apply(self.model, step, options, self.variables, inner, block)
            return (True, inner), output

        return Stream(init_state, checked_step, first)

    # What is asked of input and config.

    def _checked(self, audio: Any) -> Any:
        if audio.ndim != 3 or audio.shape[2] != self.config.channels:
            raise UserError(
                f"audio of shape {tuple(audio.shape)}, expected [B, T, {self.config.channels}]"
            )
        return audio

    def _levels_of_codes(self, num_codebooks: int | None) -> int:
        if not self.config.has_codes:
            raise UserError(
                f"a codec with bottleneck {self.config.bottleneck!r} has latents, no codes"
            )
        if num_codebooks is None:
            return self.config.num_codebooks
        if not 1 <= num_codebooks <= self.config.num_codebooks:
            raise UserError(f"{num_codebooks} codebooks, expected 1 to {self.config.num_codebooks}")
        return num_codebooks

    def _require_local(self) -> None:
        if self.config.norm == "time_group" or self.config.normalize:
            raise UserError(
                "this codec cannot run in chunks: norm 'time_group' and normalize take statistics "
                "of the whole signal; expected segment_seconds > 0 with them"
            )

    def _require_causal(self) -> None:
        if not self.config.causal or self.config.normalize or self.config.segment_length:
            raise UserError(
                "this codec cannot stream: expected causal=True without normalize and segments"
            )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(model: Codec, function: Callable, options: tuple, variables: Params, *args: Any) -> Any:
    """`function(bound codec, *args, *options)`, compiled once for each config, function, options
    and shapes.
    """
    return model.apply(variables, *args, *options, method=function)


def _encode_whole(codec: Codec, audio: Array, codebooks: int) -> tuple[Array, Array]:
    level = codec.level(audio)
    latents = codec.encode(audio / level[:, None, None])
    return codec.quantize(latents, codebooks) if codebooks else latents, level[:, None]


def _decode_whole(codec: Codec, x: Array, level: Array) -> Array:
    return codec.decode(_latents(codec, x)) * level[:, None, None]


def _encode_part(
    codec: Codec, x: Array, start: str | None, stop: str | None, codebooks: int
) -> Array:
    x = codec.run_encoder(x, start, stop)
    if stop is not None:
        return x
    x = x.astype(jnp.float32)
    if codec.config.bottleneck == "vae":
        return vae.moments(x)[0]
    return codec.quantize(x, codebooks) if codebooks else x


def _decode_part(codec: Codec, x: Array, start: str | None, stop: str | None) -> Array:
    frames = x.shape[1]
    x = codec.run_decoder(_latents(codec, x) if start is None else x, start, stop)
    if stop is not None:
        return x
    missing = frames * codec.config.hop - x.shape[1]
    return jnp.pad(x.astype(jnp.float32), ((0, 0), (0, missing), (0, 0)))


def _encode_step(codec: Codec, state: State, block: Array, codebooks: int) -> tuple[State, Array]:
    state, latents = codec.encode_step(state, block)
    return state, codec.quantize(latents, codebooks) if codebooks else latents


def _decode_step(codec: Codec, state: State, x: Array) -> tuple[State, Array]:
    return codec.decode_step(state, _latents(codec, x))


def _lstm_step(codec: Codec, state: State, block: Array, half: str) -> tuple[State, Array]:
    return getattr(codec, half).lstm.step(state, block)


def _latents(codec: Codec, x: Array) -> Array:
    return codec.dequantize(x) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _blocks(x: Blocks) -> Iterator[ndarray]:
    if hasattr(x, "shape"):
        yield np.asarray(x)
    else:
        yield from x


def _joined(x: Blocks) -> ndarray:
    return np.concatenate(list(_blocks(x)), axis=1)


def _pipe(blocks: Iterable[ndarray], parts: list[Callable]) -> Iterator[ndarray]:
    for part in parts:
        blocks = part(blocks)
    return iter(blocks)


def _overlapping(
    blocks: Iterable[Any], length: int, stride: int, at_once: int
) -> Iterator[ndarray]:
    """Segments [B, n <= at_once, length, C] that start at multiples of `stride`; the last one is
    filled up with zeros.
    """
    reach, covered = (at_once - 1) * stride + length, 0
    held: ndarray | None = None
    for block in blocks:
        held = np.asarray(block) if held is None else np.concatenate([held, block], axis=1)
        while held.shape[1] >= reach:
            yield _cut(held, length, stride, at_once)
            held, covered = held[:, at_once * stride :], length - stride
    # What segments before have covered needs none of its own.
    if held is not None and held.shape[1] > covered:
        count = max(1, -(-(held.shape[1] - (length - stride)) // stride))
        missing = (count - 1) * stride + length - held.shape[1]
        yield _cut(np.pad(held, ((0, 0), (0, missing), (0, 0))), length, stride, count)


def _cut(x: ndarray, length: int, stride: int, count: int) -> ndarray:
    return np.stack([x[:, i * stride : i * stride + length] for i in range(count)], axis=1)
