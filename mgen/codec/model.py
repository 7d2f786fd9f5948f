"""The codec: encoder, bottleneck, decoder."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mgen.codec import receptive, vae
from mgen.codec.blocks import LayerStack, decoder_layers, encoder_layers
from mgen.codec.config import CodecConfig
from mgen.codec.quantize import FactorizedRVQ, ResidualVQ, draw_num_codebooks
from mgen.nn.streaming import State
from mgen.typing import Array, Float, Int, Key

__all__ = ["Codec", "CodecConfig", "CodecOutput"]

LEVEL_FLOOR = 1e-8


@flax.struct.dataclass
class CodecOutput:
    """What a training step needs of one pass.

    Attributes:
      audio: [B, T, C], the reconstruction, as long as the input.
      codes: int32 [B, F, K], every level whatever was dropped; K = 0 without a quantiser.
      latents: [B, F, D], before the bottleneck (the mean of a VAE).
      quantized: [B, F, D], what the decoder was given.
      commitment, codebook_loss, kl: float32 scalars, 0 where the bottleneck has no such term.
      extras: {"perplexity", "dead_codes", "quantization_error": [K]} of a quantiser, {"std":
        scalar} of a VAE.
    """

    audio: Array
    codes: Array
    latents: Array
    quantized: Array
    commitment: Array
    codebook_loss: Array
    kl: Array
    extras: dict[str, Array]


class Codec(nn.Module):
    """A SEANet-type audio codec. Audio is [B, T, C] in [-1, 1]; F = ceil(T / hop) frames.

    Variables: "params", and for bottleneck "rvq" the collection "codebook", mutable in training.
    Rng streams in training: "codebook" (rvq: k-means, dead codes), "dropout" (quantiser dropout),
    "sample" (vae). Everything is global under `jax.jit`
    with a sharded batch: codebook statistics are those of the whole batch.
    """

    config: CodecConfig

    def setup(self) -> None:
        self.encoder = LayerStack(self.config, encoder_layers)
        self.decoder = LayerStack(self.config, decoder_layers)
        quantizers = {"rvq": ResidualVQ, "factorized_rvq": FactorizedRVQ}
        if self.config.has_codes:
            self.quantizer = quantizers[self.config.bottleneck](self.config)

    def level(self, audio: Float[Array, "B T C"]) -> Float[Array, "B"]:
        """RMS of the mono mix, what `normalize` divides by; ones where the codec does not
        normalise.
        """
        if not self.config.normalize:
            return jnp.ones(audio.shape[0])
        mono = jnp.mean(audio, axis=-1)
        return jnp.sqrt(jnp.mean(jnp.square(mono), axis=-1)) + LEVEL_FLOOR

    def encode(self, audio: Float[Array, "B T C"]) -> Float[Array, "B F D"]:
        """Latents before the bottleneck (of a VAE: the mean)."""
        encoded = self._encode(audio)
        return vae.moments(encoded)[0] if self.config.bottleneck == "vae" else encoded

    def quantize(
        self, latents: Float[Array, "B F D"], num_codebooks: int | None = None
    ) -> Int[Array, "B F K"]:
        """Codes of the first `num_codebooks` levels; `ValueError` without codebooks."""
        self._require_codes()
        return self.quantizer.encode(latents, num_codebooks)

    def dequantize(self, codes: Int[Array, "B F k"]) -> Float[Array, "B F D"]:
        """Latents from the first k <= K levels; `ValueError` for more levels than there are."""
        self._require_codes()
        if not 1 <= codes.shape[-1] <= self.config.num_codebooks:
            raise ValueError(
                f"codes have {codes.shape[-1]} levels, expected 1 to {self.config.num_codebooks}"
            )
        return self.quantizer.decode(codes)

    def decode(self, latents: Float[Array, "B F D"]) -> Float[Array, "B T C"]:
        """Audio of exactly F hop samples."""
        audio = self.decoder(latents).astype(jnp.float32)
        missing = latents.shape[1] * self.config.hop - audio.shape[1]
        return jnp.pad(audio, ((0, 0), (0, missing), (0, 0)))

    def __call__(
        self,
        audio: Float[Array, "B T C"],
        train: bool,
        num_codebooks: Int[Array, "B"] | None = None,
    ) -> CodecOutput:
        """Encodes, quantises with `num_codebooks` levels an example (training draws them by
        quantiser dropout), decodes.
        """
        c = self.config
        level = self.level(audio)[:, None, None]
        encoded = self._encode(audio / level)
        zero = jnp.zeros(())
        codes = jnp.zeros((*encoded.shape[:2], 0), jnp.int32)
        commitment = codebook_loss = kl = zero
        extras: dict[str, Array] = {}
        if c.has_codes:
            if num_codebooks is None and train and c.quantizer_dropout and self.has_rng("dropout"):
                num_codebooks = draw_num_codebooks(self.make_rng("dropout"), c, audio.shape[0])
            latents = encoded
            quantized, codes, commitment, codebook_loss, extras = self.quantizer(
                latents, train, num_codebooks
            )
        elif c.bottleneck == "vae":
            latents, std = vae.moments(encoded)
            kl, extras = vae.kl_divergence(latents, std), {"std": jnp.mean(std)}
            sampled = train and not self.is_initializing()
            quantized = vae.sample(self.make_rng("sample"), latents, std) if sampled else latents
        else:
            latents = quantized = encoded
        decoded = self.decode(quantized)[:, : audio.shape[1]] * level
        return CodecOutput(
            decoded, codes, latents, quantized, commitment, codebook_loss, kl, extras
        )

    @property
    def decoder_context(self) -> int:
        """Frames on either side that the audio of a frame depends on; `TypeError` with an LSTM."""
        return max(receptive.context(decoder_layers(self.config), 1, self.config.hop))

    def encoder_state(self, batch: int) -> State:
        """State of a stream before its first sample; `ValueError` for codecs that cannot stream."""
        return self.encoder.init_state(batch)

    def encode_step(self, state: State, block: Float[Array, "B t C"]) -> tuple[State, Array]:
        """The next block (a multiple of hop) in, its latents [B, t / hop, D] out."""
        state, encoded = self.encoder.step(state, block)
        encoded = encoded.astype(jnp.float32)
        return state, (vae.moments(encoded)[0] if self.config.bottleneck == "vae" else encoded)

    def decoder_state(self, batch: int) -> State:
        return self.decoder.init_state(batch)

    def decode_step(self, state: State, latents: Float[Array, "B f D"]) -> tuple[State, Array]:
        """The next frames in, their audio [B, f hop, C] out."""
        state, audio = self.decoder.step(state, latents)
        return state, audio.astype(jnp.float32)

    def run_encoder(self, x: Array, start: str | None = None, stop: str | None = None) -> Array:
        """A run of encoder layers by name (`blocks.encoder_layers`): what chunked inference is made
        of.
        """
        return self.encoder(x, start, stop)

    def run_decoder(self, x: Array, start: str | None = None, stop: str | None = None) -> Array:
        return self.decoder(x, start, stop)

    def _encode(self, audio: Array) -> Array:
        missing = -audio.shape[1] % self.config.hop if self.config.align_input else 0
        audio = jnp.pad(audio, ((0, 0), (0, missing), (0, 0)))
        return self.encoder(audio).astype(jnp.float32)

    def _require_codes(self) -> None:
        if not self.config.has_codes:
            raise ValueError(f"a codec with bottleneck {self.config.bottleneck!r} has no codes")


def init_codec(config: CodecConfig, key: Key) -> Any:
    """Fresh variables {"params": ..., ["codebook": ...]}; works under `jax.jit` and
    `jax.eval_shape`.

    Draws from XLA's own generator: hundreds of small threefry draws would compile for minutes.
    """
    key = jax.random.wrap_key_data(jax.random.bits(key, (4,)), impl="unsafe_rbg")
    audio = jnp.zeros((1, 8 * config.hop, config.channels))
    return Codec(config).init(key, audio, False)
