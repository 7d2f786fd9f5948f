"""What trained models in workdirs are exported as."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen import chain, tracks
from mgen.export import signatures
from mgen.export.signature import Signature
from mgen.export.stem_signatures import of_stems
from mgen.inputs import attributes
from mgen.joint.config import VOCABULARY
from mgen.lm.filters import SamplingConfig

Exported = tuple[list[Signature], dict[str, Path]]


def of_chain(codec: str, joint: str, lms: Sequence[str], seconds: float) -> Exported:
    """Functions of a codec and, where there are any, of a joint embedding and of language models,
    and the files that belong to them by name.

    Args:
      seconds: of what is generated, and of audio where a codec must know its length.
    """
    frozen, trained = chain.load_codec(codec)
    functions, files = signatures.of_codec(frozen, trained.fingerprint, seconds), {}
    embedding = None
    if joint:
        model, trained = chain.load_joint(joint)
        embedding = model, signatures.joint_model(model, trained.fingerprint)
        functions += signatures.of_joint(*embedding)
        if (trained.workdir / VOCABULARY).is_file():
            files[VOCABULARY] = trained.workdir / VOCABULARY
    if lms:
        made = chain.load(lms, codec, joint)
        names = [made.about[f"lm_{i}"] for i in range(len(made.stages))]
        how = seconds, [SamplingConfig()] * len(names), attributes.NAMES
        functions.append(signatures.of_chain(made.stages, names, *how, embedding))
    return functions, files


def of_tracks(workdirs: Sequence[str], kind: str, changes: dict[str, Any]) -> Exported:
    """Functions of a model over stems, or of those of one stem each.

    Args:
      kind, changes: see `mgen.tracks.separation`.
    """
    model, about = tracks.load(workdirs)
    settings, _ = tracks.separation(model, kind, changes=changes)
    return of_stems(model, " ".join(about.values()), **settings), {}
