"""Tokenizing an hour of music: a codec, a semantic encoder and a joint embedding in one pass.

The peer is what one writes with a script a model: the same models, one pass over the dataset for
each, which renders the music every time. The models are the tiny ones of configs/, freshly
initialised: weights do not change the speed. Both sides are warmed up on one piece (compilation),
then run whole, on as many threads as there are cores. Prints where the time goes, and what a piece
of an hour adds to the memory that the pieces of a minute took (in a process of its own).
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mgen import tokenize
from mgen.codec.sample import FrozenCodec
from mgen.inputs import mixes, pipeline
from mgen.joint.sample import FrozenJoint
from mgen.kmeans import Codebook
from mgen.launch.suites import inputs, kmeans
from mgen.semantic.config import SemanticConfig
from mgen.semantic.sample import FrozenSemantic
from mgen.train.checkpoint import make_task

PIECES, SECONDS = 60, 60.0  # an hour
LONG = 3600.0  # s, one piece
# What the long piece may add: its audio, as much as is kept in memory, and blocks on their way.
BOUND = mixes.IN_MEMORY + (128 << 20)
CONFIGS = {
    "codec": "codec.tiny_16khz",
    "semantic": "semantic.tiny_w2vbert",
    "joint": "joint.tiny_mulan",
}


def run() -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}: hours of audio an hour."""
    command = [sys.executable, "-m", "mgen.launch.suites.tokenize"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *printed, rows = done.stdout.splitlines()
    print("\n".join(printed))
    return json.loads(rows)


def _measure() -> list[dict[str, Any]]:
    stages = _stages()
    render = pipeline.default_config().render.to_dict()
    together = tokenize.Tokenizer(stages, render)
    alone = [tokenize.Tokenizer([stage], render) for stage in stages]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scores = [inputs.score(i, SECONDS) for i in range(PIECES)]
        data = inputs.prepare(folder / "data", scores)
        first = inputs.prepare(folder / "first", scores[:1])
        seconds = {}
        for side, tokenizers in (("ours", [together]), ("peer", alone)):
            for number, tokenizer in enumerate(tokenizers):
                _write(tokenizer, first, folder / f"{side}-first-{number}", SECONDS)
                tokenizer.seconds = dict.fromkeys(tokenizer.seconds, 0.0)
                tokenizer.audio_seconds = 0.0
            start = time.perf_counter()
            for number, tokenizer in enumerate(tokenizers):
                _write(tokenizer, data, folder / f"{side}-{number}", SECONDS)
            seconds[side] = time.perf_counter() - start
        print(together.report())
        before = kmeans.peak()
        hour = inputs.prepare(folder / "long", [inputs.score(0, LONG)])
        _write(together, hour, folder / "hour", LONG)
        added = kmeans.peak() - before
    print(f"a piece of {LONG:g} s added {added >> 20} MiB to a peak of {before >> 20} MiB")
    if added > BOUND:
        raise AssertionError(f"it added {added >> 20} MiB, at most {BOUND >> 20} were promised")
    rates = {side: PIECES * SECONDS / value for side, value in seconds.items()}
    case = f"{PIECES} pieces of {SECONDS:g} s, three models"
    ratio = rates["ours"] / rates["peer"]
    return [dict(suite="tokenize", case=case, unit="h/h", **rates, ratio=ratio)]


def _stages() -> list[tokenize.Stage]:
    found = {}
    for name, config in CONFIGS.items():
        task = make_task(importlib.import_module(f"mgen.configs.{config}").get_config())
        state = jax.jit(task.init)(jax.random.key(0))
        found[name] = (task.config, task.generator_params(state), state.variables)
    config, *weights = found["semantic"]
    semantic = FrozenSemantic.from_trained(SemanticConfig.from_config(config.model), *weights)
    joint = FrozenJoint.from_trained(*found["joint"])
    rng = np.random.default_rng(0)

    def book(levels: int, size: int, width: int, **about: Any) -> Codebook:
        return Codebook(rng.standard_normal((levels, size, width), dtype=np.float32), about)

    words = book(1, 512, semantic.config.dim, layer=semantic.config.layers - 1, frame_rate=25.0)
    return [
        tokenize.Acoustic(FrozenCodec.from_trained(*found["codec"]), ""),
        tokenize.Semantic(semantic, words, ""),
        tokenize.Joint(joint, book(12, 1024, joint.config.embed_dim), ""),
    ]


def _write(tokenizer: tokenize.Tokenizer, dataset: Path, out: Path, seconds: float) -> None:
    job = tokenize.Job(
        dataset=str(dataset), out=str(out), splits=("train",), num_shards=1, max_seconds=seconds
    )
    tokenize.write(tokenizer, job, tokenize.open_splits(job))


if __name__ == "__main__":
    print(json.dumps(_measure()))
