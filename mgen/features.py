"""Vectors of a dataset's audio through a frozen encoder, and the codebook that k-means makes of
them.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from mgen import chain, manifest, vectors
from mgen.errors import UserError
from mgen.inputs import mixes
from mgen.inputs.records import open_records
from mgen.inputs.render import RenderConfig
from mgen.joint.sample import STRIDE_SECONDS
from mgen.kmeans import Codebook, KMeansConfig, fit
from mgen.semantic import targets
from mgen.semantic.config import SemanticConfig, TargetConfig
from mgen.sharding.mesh import make_mesh

MEL_SECONDS = 10.0  # of audio whose mel frames are computed at once


@dataclasses.dataclass(frozen=True)
class Features:
    """An encoder as k-means sees it.

    Attributes:
      of: audio float32 [T, C] -> vectors [n, D].
      sample_rate, channels: of that audio.
      render: fields of a `RenderConfig`, as in the encoder's training.
      about: what the codebook's manifest says of them: parents, layer, frame_rate, ...
    """

    of: Callable[[np.ndarray], np.ndarray]
    sample_rate: int
    channels: int
    render: dict[str, Any]
    about: dict[str, Any]


def choose(
    kind: str,
    config: ml_collections.ConfigDict | None,
    encoder: str,
    layer: int | None,
    rate: float,
    stride_seconds: float = STRIDE_SECONDS,
) -> Features:
    """What the flags of `launch/fit_codebook.py` ask for; `UserError` where they disagree."""
    if (kind == "mel") == bool(encoder):
        raise UserError("expected either --encoder or --features=mel with --config")
    if kind != "mel":
        return of_encoder(encoder, layer, rate, stride_seconds)
    if config is None:
        raise UserError("--features=mel: expected --config=semantic/<name>")
    return of_mel(config)


def of_encoder(
    workdir: str | Path,
    layer: int | None = None,
    rate: float = 25.0,
    stride_seconds: float = STRIDE_SECONDS,
) -> Features:
    """Features of a semantic encoder's `layer` at `rate` Hz, or a joint embedding's of the windows
    that start every `stride_seconds`, by the family of what `workdir` holds.

    Raises `UserError` for another family, a layer where there is none to choose, or none given.
    """
    family = manifest.read(workdir).get("family")
    if family == "semantic":
        if layer is None:
            raise UserError(f"{workdir}: a semantic encoder, expected --layer=<number>")
        encoder, trained = chain.load_semantic(workdir)
        if not 0 <= layer <= encoder.config.layers:
            raise UserError(f"--layer={layer}: expected 0 to {encoder.config.layers}")
        of: Any = functools.partial(encoder.features_long, layer=layer, rate=rate)
        shape = encoder.config.sample_rate, 1
        about: dict[str, Any] = {"layer": layer, "frame_rate": rate}
    elif family == "joint":
        if layer is not None:
            raise UserError(f"--layer={layer}: {workdir} is a joint embedding, which has no layers")
        joint, trained = chain.load_joint(workdir)
        of = functools.partial(joint.window_embeddings, stride_seconds=stride_seconds)
        shape = joint.config.sample_rate, joint.config.channels
        about = {"frame_rate": 1.0 / stride_seconds}
    else:
        raise UserError(f"{workdir}: family is {family!r}, expected 'semantic' or 'joint'")
    about |= {"features": family, "parents": {"encoder": trained.fingerprint}}
    return Features(of, *shape, trained.config.data.render.to_dict(), about)


def of_mel(config: ml_collections.ConfigDict) -> Features:
    """The mel patches that a semantic encoder with targets of kind "mel_rvq" is to predict.

    Raises `UserError` for a config of another family, or with other targets.
    """
    if config.family != "semantic":
        raise UserError(f"--config: family is {config.family!r}, expected 'semantic'")
    model, target = (
        SemanticConfig.from_config(config.model),
        TargetConfig.from_config(config.targets),
    )
    if target.kind != "mel_rvq":
        raise UserError(f"--config: targets.kind is {target.kind!r}, expected 'mel_rvq'")
    targets.check(model, target)
    patches = jax.jit(functools.partial(targets.mel_patches, model, target))
    size = round(MEL_SECONDS * model.sample_rate)

    def of(audio: np.ndarray) -> np.ndarray:
        # One shape for all but the shortest pieces; the rest of a piece is left out.
        starts = range(0, max(1, len(audio) - size + 1), size)
        return np.concatenate([patches(audio[None, i : i + size])[0] for i in starts])

    # A folder that is to be written yet: no part of what the patches are.
    about = {"features": "mel", "mel": dataclasses.asdict(target.mel), "hop": model.front.hop}
    return Features(
        of, model.sample_rate, config.data.channels, config.data.render.to_dict(), about
    )


def fit_codebook(
    features: Features,
    dataset: str | Path,
    out: str | Path,
    config: KMeansConfig,
    *,
    split: str = "train",
    max_vectors: int = 1_000_000,
    max_seconds: float = 60.0,
) -> Codebook:
    """Fits a codebook to the vectors of a split; goes on where it was interrupted.

    Until it is done `out` holds the vectors (at most `max_vectors`) and the state of the fit.

    Raises `UserError` where `out` holds a codebook that was made otherwise, naming the field.
    """
    source = open_records(dataset, split)
    fields = dict(split=split, max_vectors=max_vectors, max_seconds=max_seconds)
    about = {**features.about, "kmeans": dataclasses.asdict(config), **fields}
    out = Path(out)
    if (out / manifest.FILE).exists():
        book = Codebook.load(out)
        manifest.require(book.about, out / manifest.FILE, **about)
        return book
    player = RenderConfig(
        sample_rate=features.sample_rate, channels=features.channels, **features.render
    )

    shards = vectors.extract(
        mixes.Mixes(source, player, config.seed, max_seconds),
        features.of,
        out / "vectors",
        about={**features.about, **fields},
        max_vectors=max_vectors,
        seed=config.seed,
    )
    state = out / "fit.safetensors"
    mesh = make_mesh() if jax.device_count() > 1 else None
    found, errors = fit(shards, config, state_file=state, mesh=mesh)
    book = Codebook(found, {**about, "errors": errors, "vectors": len(shards)})
    book.save(out)
    state.unlink()
    shutil.rmtree(out / "vectors")
    return Codebook.load(out)
