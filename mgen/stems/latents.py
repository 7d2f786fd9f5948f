"""Stems as latents of a codec and back, and what the latents are divided by.

The codec comes from outside: a Linen module with methods `encode`, [N, T, C] to [N, F, D], and
`decode`. A diffusion model wants latents of mean 0 and variance 1: both are measured once, channel
by channel, and stand in a manifest of their own.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mgen import manifest
from mgen.errors import UserError
from mgen.metrics.audio import si_sdr
from mgen.metrics.frechet import Moments
from mgen.typing import Array, Batch, Bool, Float, Params, ndarray

KIND = "latent_scale"
# Of a channel's deviation from the median one: what lies outside is dead or broken.
SPREAD = 100.0
# Mean square of a stem that counts as silent (-60 dB).
SILENCE = 1e-6
# Deviations of normalised latents of other music that are still those of one distribution.
ACCEPTED = (0.5, 2.0)


@dataclasses.dataclass(frozen=True)
class Scale:
    """What latents are normalised by, float32 [D], and the fingerprint of their codec."""

    mean: ndarray
    std: ndarray
    codec: str = ""

    @classmethod
    def of(cls, moments: Moments, codec: str = "") -> "Scale":
        """Raises `UserError` for less than two vectors or a channel that says nothing beside the
        others."""
        middle = float(np.median(moments.std))
        if moments.count < 2 or middle == 0:
            raise UserError(
                f"latents: {moments.count} vectors of median deviation {middle}, expected ones "
                "that differ"
            )
        share = moments.std / middle
        worst = int(np.argmax(np.abs(np.log(np.maximum(share, 1e-30)))))
        if not 1 / SPREAD <= share[worst] <= SPREAD:
            raise UserError(
                f"latents: channel {worst} has deviation {moments.std[worst]:.3g}, the median is "
                f"{middle:.3g}; expected within a factor of {SPREAD:.0f}: train the codec longer, "
                "or with a larger loss.kl.weight"
            )
        return cls(moments.mean.astype(np.float32), moments.std.astype(np.float32), codec)

    def save(self, folder: str | Path, **about: Any) -> None:
        """Writes a manifest; `about` are fields beside."""
        values = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        manifest.write(folder, {"kind": KIND, "parents": {"codec": self.codec}, **values, **about})

    @classmethod
    def load(cls, folder: str | Path, codec: str) -> "Scale":
        """Raises `UserError` where `folder` holds no scale, or one of another codec."""
        about, where = manifest.read(folder), Path(folder) / manifest.FILE
        manifest.require(about, where, kind=KIND, parents={"codec": codec})
        mean, std = (np.asarray(about.get(name, ()), np.float32) for name in ("mean", "std"))
        if mean.ndim != 1 or mean.shape != std.shape or not mean.size or not np.all(std > 0):
            raise UserError(f"{where}: mean {mean.shape}, std {std.shape}, expected equal lengths")
        return cls(mean, std, codec)


@flax.struct.dataclass
class StemLatents:
    """A codec and the scale of its latents: a pytree, so that weights are arguments of a jitted
    function.

    Attributes:
      codec: see the module; variables: its.
      mean, std: float32 [D].
    """

    codec: nn.Module = flax.struct.field(pytree_node=False)
    variables: Params
    mean: Array
    std: Array

    def encode(self, stems: Float[Array, "B S T C"]) -> Float[Array, "B S F D"]:
        """Normalised latents; one track of all examples at a time."""
        latents = self._each(stems, "encode")
        return (latents - self._row(self.mean)) / self._row(self.std)

    def decode(self, latents: Float[Array, "B S F D"]) -> Float[Array, "B S T C"]:
        """Audio of normalised latents."""
        return self._each(latents * self._row(self.std) + self._row(self.mean), "decode")

    def _each(self, x: Array, method: str) -> Array:
        # Tracks are not split over devices as examples are, so this costs no exchange.
        tracks = x.swapaxes(0, 1)
        found = jax.lax.map(lambda y: self.codec.apply(self.variables, y, method=method), tracks)
        return found.astype(jnp.float32).swapaxes(0, 1)

    def _row(self, vector: Array) -> Array:
        return vector[None, None, None]


def measure_scale(
    codec: nn.Module, variables: Params, batches: Iterable[Batch], fingerprint: str = ""
) -> Scale:
    """Scale of the latents of the stems that are there in batches {"stems": [B, S, T, C],
    "stem_mask": [B, S]}; errors as `Scale.of`."""

    @jax.jit
    def encode(variables: Params, stems: Array) -> Array:
        return StemLatents(codec, variables, jnp.zeros(1), jnp.ones(1)).encode(stems)

    total: Moments | None = None
    for batch in batches:
        latents = np.asarray(encode(variables, batch["stems"]))
        rows = latents[np.asarray(batch["stem_mask"])].reshape(-1, latents.shape[-1])
        if len(rows):
            own = Moments.of(rows)
            total = own if total is None else total.merge(own)
    if total is None:
        raise UserError("latents: no batch with a stem to measure their scale on")
    return Scale.of(total, fingerprint)


def preflight(
    latents: StemLatents,
    stems: Float[ndarray, "B S T C"],
    present: Bool[ndarray, "B S"],
) -> dict[str, float]:
    """What a model of these latents has to expect, on music that the scale was not measured on.

    Returns:
      least_std, greatest_std: of the channels of the normalised latents; largest: their greatest
      magnitude; si_sdr: dB, of decoded stems against the originals, the mean over those that
      are heard: what no model of the latents can surpass.

    Raises:
      UserError: a deviation outside `ACCEPTED`: of another codec or other music.
    """
    z = jax.jit(StemLatents.encode)(latents, stems)
    audio = np.asarray(jax.jit(StemLatents.decode)(latents, z))[:, :, : stems.shape[2]]
    rows = np.asarray(z)[present].reshape(-1, z.shape[-1])
    std = Moments.of(rows).std
    if not ACCEPTED[0] <= std.min() <= std.max() <= ACCEPTED[1]:
        raise UserError(
            f"latents: normalised channels have deviations from {std.min():.3g} to "
            f"{std.max():.3g}, expected {ACCEPTED[0]} to {ACCEPTED[1]}: their scale is of another "
            "codec or other music"
        )
    pair = (jnp.moveaxis(jnp.asarray(x), 3, 2) for x in (stems, audio))
    ratios = np.asarray(si_sdr(*pair)).mean(axis=2)
    heard = present & (np.square(stems).mean(axis=(2, 3)) > SILENCE)
    return {
        "least_std": float(std.min()),
        "greatest_std": float(std.max()),
        "largest": float(np.abs(rows).max()),
        "si_sdr": float(ratios[heard].mean()) if heard.any() else np.nan,
    }
