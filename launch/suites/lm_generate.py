"""Generation by our own models against one another, random weights of equal width.

SoundStorm against the two autoregressive acoustic stages of MusicLM that it stands in for: 12
levels of 10 s from the same semantic tokens. A batch of ragged prompts against one where all are as
long as the longest. Weights in int8 against float32. Peak memory of two minutes, generated in
windows, against that of half a minute, each in a process of its own: it must not grow with the
length.
"""

import dataclasses
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mgen.launch.suites import kmeans
from mgen.lm import stages
from mgen.lm.filters import SamplingConfig
from mgen.lm.masked import FrozenMasked
from mgen.lm.sample import FrozenLM
from mgen.lm.stages import Directions, FrozenStage, Timeline
from mgen.train.checkpoint import make_task


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Width, and how much is generated.

    Attributes:
      dim, layers: of every model; heads of 64, ff 4 dim.
      seconds: of the acoustic tokens.
      prompts: frames of the ragged batch's prompts; frames: of the result.
      lengths: seconds, short and long, of the two generations whose memory is compared; window.
      int8: width, layers (MusicGen small's) and frames of the model with int8 weights.
      turns: timed runs of each side, after one that compiles; the median counts.
    """

    dim: int = 512
    layers: int = 6
    seconds: float = 10.0
    prompts: tuple[int, ...] = (25, 50, 75, 100, 125, 150, 175, 200)
    frames: int = 400
    lengths: tuple[float, float] = (30.0, 120.0)
    window: float = 10.0
    turns: int = 3
    int8: tuple[int, int, int] = (1024, 24, 100)


FULL = Sizes()
SMOKE = Sizes(64, 2, 1.0, (2, 4, 6, 8), 20, (3.0, 6.0), 1.0, 1, (64, 2, 20))
RAGGED = 1.15  # times the longest prompt's time, at most
GROWTH = 1.05  # times the short generation's peak memory, at most: allocation is not exact


def run(sizes: Sizes = FULL) -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}: passes, seconds, MiB; the lower the better."""
    return [*_soundstorm(sizes), _ragged(sizes), _int8(sizes), _memory(sizes)]


def _row(case: str, unit: str, ours: float, peer: float) -> dict[str, Any]:
    values = dict(ours=ours, peer=peer, ratio=peer / ours)
    return dict(suite="lm_generate", case=case, unit=unit, **values)


def _stage(name: str, arg: str, sizes: Sizes, seconds: float) -> FrozenStage:
    """A stage of a shipped config with random weights, at the width of the suite."""
    config = importlib.import_module(f"mgen.configs.hierarchy.{name}").get_config(arg)
    with config.unlocked():
        heads = max(1, sizes.dim // 64)
        config.model.update(dim=sizes.dim, heads=heads, layers=sizes.layers, ff=4 * sizes.dim)
        config.data.seconds = seconds
    task = make_task(config)
    variables = jax.jit(task.init_variables)(jax.random.key(0))
    params = variables.pop("params")
    return FrozenStage.from_trained(config, params, variables)


def _soundstorm(sizes: Sizes) -> list[dict[str, Any]]:
    seconds = sizes.seconds
    sides = {
        "ours": [_stage("soundstorm_350m", "", sizes, seconds)],
        "peer": [
            _stage("musiclm_430m", "coarse", sizes, seconds),
            _stage("musiclm_430m", "fine", sizes, min(seconds, 3.0)),
        ],
    }
    rng = np.random.default_rng(0)
    given = {"semantic": rng.integers(0, 1024, (1, round(25 * seconds), 1), dtype=np.int32)}

    def work(chain: list[FrozenStage]) -> Callable[[], None]:
        def generate() -> None:
            timelines = [_timeline(stage, seconds) for stage in chain]
            *_, streams = stages.run(timelines, given)
            assert streams["acoustic"].shape == (1, round(50 * seconds), 12)

        return generate

    medians = _alternate({side: work(chain) for side, chain in sides.items()}, sizes.turns)
    passes = {side: sum(_passes(s, seconds) for s in chain) for side, chain in sides.items()}
    case = f"SoundStorm against coarse and fine LM, {seconds:g} s, dim {sizes.dim}"
    return [_row(case, "passes", **passes), _row(case, "s", **medians)]


def _timeline(stage: FrozenStage, seconds: float) -> Timeline:
    sampling = SamplingConfig(guidance=1.0)
    return Timeline(stage, seconds, np.zeros(1, np.int32), Directions(), sampling)


def _passes(stage: FrozenStage, seconds: float) -> int:
    """Of the model, for a clip."""
    if isinstance(stage.lm, FrozenMasked):
        return sum(stage.lm.masking.passes(stage.lm.config.num_codebooks))
    return stage.lm.config.make_layout().steps(stage.stage.frames(seconds))


def _ragged(sizes: Sizes) -> dict[str, Any]:
    lm = _stage("musicgen_small", "", sizes, 30.0).lm
    batch, longest = len(sizes.prompts), max(sizes.prompts)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, lm.config.codebook_size, (batch, longest, 4), dtype=np.int32)

    def work(lengths: list[int]) -> Callable[[], None]:
        def generate() -> None:
            seeds, own = np.arange(batch), np.asarray(lengths)
            codes = lm.generate(frames=sizes.frames, seeds=seeds, prompt=prompt, prompt_frames=own)
            jax.block_until_ready(codes)

        return generate

    sides = {"ours": work(list(sizes.prompts)), "peer": work([longest] * batch)}
    medians = _alternate(sides, sizes.turns)
    if medians["ours"] > RAGGED * medians["peer"] and sizes != SMOKE:
        raise AssertionError(f"ragged prompts cost more than {RAGGED} of the longest: {medians}")
    case = f"{batch} prompts of {min(sizes.prompts)} to {longest} frames against all {longest}"
    return _row(case, "s", **medians)


def _int8(sizes: Sizes) -> dict[str, Any]:
    dim, layers, frames = sizes.int8
    lm = _stage("musicgen_small", "", dataclasses.replace(sizes, dim=dim, layers=layers), 30.0).lm

    def work(lm: FrozenLM) -> Callable[[], None]:
        return lambda: jax.block_until_ready(lm.generate(frames=frames, seeds=[0]))

    medians = _alternate({"ours": work(lm.int8()), "peer": work(lm)}, sizes.turns)
    case = f"int8 weights against float32, dim {dim}, {layers} layers, {frames} frames"
    return _row(case, "s", **medians)


def _alternate(sides: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Median seconds of each side; in turns, so that a busy machine slows them alike."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(turns + 1):
        for side, work in sides.items():
            start = time.perf_counter()
            work()
            if turn:  # the first one compiles
                seconds[side].append(time.perf_counter() - start)
    return {side: statistics.median(values) for side, values in seconds.items()}


def _memory(sizes: Sizes) -> dict[str, Any]:
    peaks = []
    for length in sizes.lengths:
        command = [sys.executable, "-m", "mgen.launch.suites.lm_generate", str(length)]
        command.append(json.dumps(dataclasses.asdict(sizes)))
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]))
    short, long = peaks
    if long > GROWTH * short:
        raise AssertionError(f"peak memory grows with the length: {short} to {long} bytes")
    case = "{1:g} s in windows of {2:g} s against {0:g} s, peak memory".format(
        *sizes.lengths, sizes.window
    )
    return _row(case, "MiB", long / 2**20, short / 2**20)


def _generate_long(length: float, sizes: Sizes) -> None:
    """A clip of `length` seconds by windows; prints this process's peak memory in bytes."""
    timeline = _timeline(_stage("musicgen_small", "", sizes, sizes.window), length)
    for _ in stages.run([timeline]):
        pass
    print(kmeans.peak())


if __name__ == "__main__":
    _generate_long(float(sys.argv[1]), Sizes(**json.loads(sys.argv[2])))
