"""Does a chain follow its prompts? Clips made from the descriptions of held-out pieces, each
compared in the joint embedding with its own description and with those of the others (MusicLM,
section 5.1, "MuLan cycle consistency").
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mgen.chain import Chain
from mgen.inputs import captions
from mgen.inputs.records import RecordSource
from mgen.inputs.render import RenderConfig
from mgen.lm.filters import SamplingConfig
from mgen.metrics import bootstrap
from mgen.progress import track
from mgen.typing import Float, ndarray
from mgen.wish import Wish


@dataclasses.dataclass(frozen=True)
class Options:
    """How many clips of how many seconds, at once, from which seed on."""

    n: int = 96
    seconds: float = 6.0
    batch: int = 8
    seed: int = 0


def measure(
    chain: Chain,
    source: RecordSource,
    player: RenderConfig,
    sampling: Sequence[SamplingConfig],
    options: Options,
) -> dict[str, float]:
    """`summary` of `options.n` clips, each prompted by the description of a piece of `source` as
    `player` would play it."""
    texts = [
        captions.of_performance(source[i % len(source)], options.seed + i, player)
        for i in range(options.n)
    ]
    scores = []
    for start in track(range(0, options.n, options.batch), "clips", unit="batches"):
        # Full batches only: one compiled program.
        rows = np.arange(start, start + options.batch) % options.n
        wish = Wish(duration=options.seconds, prompt=[texts[row] for row in rows])
        _, audio = chain.generate(wish, options.seed + rows, sampling)
        scores.append(chain.scores(audio, texts))
    return summary(np.concatenate(scores)[: options.n], options.seed)


def summary(scores: Float[ndarray, "N N"], seed: int = 0) -> dict[str, float]:
    """Mean cosine of clips with their own texts ("prompted") and with the others' ("shuffled"),
    their "difference" with its 95% bootstrap interval over clips ("low", "high"), and how often the
    own text is the nearest of all ("recall_at_1").
    """
    count = len(scores)
    own = np.diagonal(scores)
    others = (scores.sum(axis=1) - own) / (count - 1)
    gap = own - others
    difference = bootstrap.mean_interval(gap, seed=seed)
    values = {
        "prompted": own.mean(),
        "shuffled": others.mean(),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "recall_at_1": (scores.argmax(axis=1) == np.arange(count)).mean(),
    }
    return {name: float(value) for name, value in values.items()}
