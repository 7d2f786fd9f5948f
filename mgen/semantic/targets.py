"""What masked frames must tell: codes of the clean audio, and its constant-Q spectrum.

  random_projection  code_k = argmax_v <unit(P_k x), unit(c_kv)>, P and c random and frozen (Chiu et
                     al. 2022, "BEST-RQ", section 3.1); x the mel frames under a frame of the trunk,
                     each bin at zero mean and unit variance over the example, or few codes are used
  mel_rvq            residual nearest neighbours of x in codebooks fitted before (Zhu et al. 2025,
                     "MuQ", section III-B)
  codes              a codec's tokens, from the batch (Li et al. 2023, "MERT", section 3.3)

All are functions of one example; nothing here is learned.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mgen.audio import cqt as constant_q
from mgen.errors import UserError
from mgen.nn import cluster
from mgen.nn.extrema import argmax
from mgen.semantic.config import SemanticConfig, TargetConfig
from mgen.semantic.frontend import log_mel
from mgen.semantic.model import unit
from mgen.typing import Array, Batch, Float, Int, Params

FLOOR = 0.1  # least standard deviation of a bin: silence stays silence


def check(config: SemanticConfig, targets: TargetConfig) -> None:
    """`UserError` where the frames of the targets cannot be aligned with the trunk's."""
    if targets.kind != "codes" and config.front.hop % targets.mel.hop:
        raise UserError(
            f"targets.mel.hop is {targets.mel.hop}, expected a divisor of the trunk's hop "
            f"{config.front.hop}"
        )


def mel_patches(
    config: SemanticConfig, targets: TargetConfig, audio: Float[Array, "B T C"]
) -> Float[Array, "B F W"]:
    """The mel frames under each frame of the trunk, side by side: what mel-RVQ is fitted on."""
    spectrogram = log_mel(targets.mel, config.sample_rate, jnp.mean(audio, axis=-1))
    stack = config.front.hop // targets.mel.hop
    frames = min(config.frames(audio.shape[1]), spectrogram.shape[1] // stack)
    return spectrogram[:, : frames * stack].reshape(audio.shape[0], frames, -1)


def init_variables(config: SemanticConfig, targets: TargetConfig) -> Params:
    """Frozen arrays of the targets: {"projection" [K, W, h], "codebook" [K, V, h]} or {"codebook"
    [K, V, W]}, zeros that `load_codebook` replaces; {} for codes."""
    width = config.front.hop // targets.mel.hop * targets.mel.n_mels
    shape = (targets.codebooks, targets.codebook_size)
    if targets.kind == "codes":
        return {}
    if targets.kind == "mel_rvq":
        return {"codebook": jnp.zeros((*shape, width))}
    projection, codebook = jax.random.split(jax.random.key(targets.seed))
    rows = (targets.codebooks, width, targets.codebook_dim)
    init = jax.nn.initializers.xavier_uniform(batch_axis=0)
    return {
        "projection": init(projection, rows),
        "codebook": unit(jax.random.normal(codebook, (*shape, targets.codebook_dim))),
    }


def load_codebook(config: SemanticConfig, targets: TargetConfig) -> Float[np.ndarray, "K V W"]:
    """Codebooks of "mel_rvq" from the folder `targets.codebook`; `UserError` where there is none or
    one of another shape."""
    from mgen.kmeans import Codebook

    if not targets.codebook:
        raise UserError(
            "targets.codebook is empty, expected a folder written by `mgen fit_codebook "
            "--features=mel`"
        )
    vectors = np.asarray(Codebook.load(targets.codebook).vectors, np.float32)
    expected = jax.eval_shape(lambda: init_variables(config, targets))["codebook"].shape
    if vectors.shape != expected:
        raise UserError(
            f"{targets.codebook}: codebooks have shape {vectors.shape}, expected {expected}"
        )
    return vectors


def codes(
    config: SemanticConfig, targets: TargetConfig, variables: Params, batch: Batch
) -> Int[Array, "B F K"]:
    """The codes of a batch at the trunk's frames."""
    if targets.kind == "codes":
        # Several frames of the codec may lie under one of the trunk.
        found = batch["codes"]
        stack = targets.codebooks // found.shape[2]
        frames = found.shape[1] // stack
        return found[:, : frames * stack].reshape(found.shape[0], frames, targets.codebooks)
    patches = mel_patches(config, targets, batch["audio"])
    if targets.kind == "random_projection":
        return random_projection(variables, normalize_bins(patches, targets.mel.n_mels))
    return residual_codes(variables["codebook"], patches)


def normalize_bins(patches: Float[Array, "B F W"], n_mels: int) -> Float[Array, "B F W"]:
    """Each mel bin at zero mean and unit variance over the example."""
    bins = patches.reshape(patches.shape[0], -1, n_mels)
    centred = bins - jnp.mean(bins, axis=1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axis=1, keepdims=True))
    return (centred / jnp.maximum(deviation, FLOOR)).reshape(patches.shape)


def random_projection(variables: Params, x: Float[Array, "B F W"]) -> Int[Array, "B F K"]:
    """Index of the code nearest in angle to each projection of x."""
    exact = jax.lax.Precision.HIGHEST
    projected = jnp.einsum("bfw,kwh->bfkh", x, variables["projection"], precision=exact)
    # The length of the projection changes no order.
    scores = jnp.einsum("bfkh,kvh->bfkv", projected, variables["codebook"], precision=exact)
    return argmax(scores)


def residual_codes(
    codebook: Float[Array, "K V W"], x: Float[Array, "B F W"]
) -> Int[Array, "B F K"]:
    """Nearest neighbours level by level, each in what the levels before leave."""
    codes, _ = cluster.residual_codes(x.reshape(-1, x.shape[-1]), codebook)
    return codes.reshape(*x.shape[:2], -1)


def cqt(
    config: SemanticConfig, targets: TargetConfig, audio: Float[Array, "B T C"]
) -> Float[Array, "B F M"]:
    """Constant-Q magnitudes |X|, or log(1 + gain |X|), centred on the trunk's frames."""
    hop = config.front.hop
    magnitude = constant_q.cqt(
        jnp.mean(audio, axis=-1)[:, hop // 2 :],
        sample_rate=config.sample_rate,
        hop=hop,
        n_bins=targets.cqt_bins,
        bins_per_octave=targets.cqt_bins_per_octave,
        fmin=targets.cqt_fmin,
    )[:, : config.frames(audio.shape[1])]
    return jnp.log1p(targets.cqt_gain * magnitude) if targets.cqt_gain else magnitude
