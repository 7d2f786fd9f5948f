"""The memorisation audit of a trained language model: its workdir, its token dataset and the
codebook of the tokens in, the figures of `mgen.metrics.memorization` out.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from mgen import manifest
from mgen.errors import UserError
from mgen.inputs import tokens
from mgen.kmeans import Codebook
from mgen.lm.condition import Condition
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import FrozenStage
from mgen.lm.streams import JOINT, JOINT_VECTORS, Stage
from mgen.metrics import memorization
from mgen.train import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked of the model.

    Attributes:
      split: whose passages; a held-out one tells what is reached without having seen them.
      n: passages, each of a piece of its own.
      prompt_seconds: lengths of the prompt; seconds: of the continuation.
      threshold: similarity of an approximate match.
      temperature: of the sampling; 0 is greedy, as MusicLM's audit.
      batch: passages at once.
      seed: of the choice of passages, and of samples.
    """

    split: str = "train"
    n: int = 256
    prompt_seconds: Sequence[float] = (0.0, 1.0, 2.0, 5.0)
    seconds: float = 5.0
    threshold: float = memorization.THRESHOLD
    temperature: float = 0.0
    batch: int = 16
    seed: int = 0


def audit(
    lm: str | Path, dataset: str | Path, codebook: str | Path, options: Options
) -> tuple[list[dict[str, float]], float]:
    """Rows of `memorization.audit`, and the frames a second of the tokens.

    Args:
      lm: workdir of a model that writes one whole stream; prompts come with the attributes and
        the joint tokens of their pieces where the model reads them.
      dataset: token dataset that it was trained on.
      codebook: of the tokens, from `launch/fit_codebook.py`; "" for none.

    Raises:
      UserError: tokens of other models than those of the training, or of another codebook, a split
        without passages that long.
    """
    task: Any
    task, state = checkpoint.load_state(lm, "lm")
    stream = target_stream(task.stage, lm)
    vectors, parents = None, dict(manifest.read(lm)["parents"])
    if codebook:
        book = Codebook.load(codebook)
        vectors, parents[f"{stream}_codebook"] = book.vectors, book.fingerprint
    expect = {**task.requires(), "parents": parents}
    read = [stream, JOINT_VECTORS] if task.joint else [stream]
    pieces = tokens.open_tokens(dataset, options.split, expect, read)
    rate = float(pieces.manifest["streams"][stream]["frame_rate"])
    if min(options.prompt_seconds, default=-1) < 0:
        raise UserError(f"prompt_seconds is {options.prompt_seconds}, expected seconds from 0 on")
    model = FrozenStage.from_trained(task.config, task.generator_params(state), state.variables)
    sampling = SamplingConfig(temperature=options.temperature, top_k=0, guidance=1.0)

    def generate(attributes: Any, embeddings: Any, **given: Any) -> Any:
        condition = Condition(
            attributes=attributes if task.lm_config.attribute_sizes else None,
            prefix=(jnp.asarray(model.joint_tokens(embeddings)),) if task.joint else (),
        )
        return model.lm.generate(condition=condition, sampling=sampling, **given)

    rows = memorization.audit(
        generate,
        pieces,
        stream,
        prompts=[round(seconds * rate) for seconds in options.prompt_seconds],
        frames=max(1, round(options.seconds * rate)),
        count=options.n,
        vectors=vectors,
        threshold=options.threshold,
        seed=options.seed,
        batch=options.batch,
    )
    return rows, rate


def target_stream(stage: Stage, lm: str | Path) -> str:
    """The one stream that a stage writes, all levels, from nothing but joint tokens; `UserError`
    for another stage."""
    (part, *more) = stage.target
    others = sorted(stage.reads - {JOINT})
    if more or part.first or others:
        raise UserError(
            f"{lm}: writes {part.stream} from {', '.join(others) or 'several streams'}, expected a "
            "stage that writes one whole stream from joint tokens or nothing"
        )
    return part.stream
