"""Audio beside its tokens: the crop of a piece that a codec saw, with the codes it made of it.

A score's performance is a function of the record, a seed and a `RenderConfig`; a token dataset's
manifest holds the last, its pieces' ids the seed, so the same sound is made again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mgen.audio import io
from mgen.errors import UserError
from mgen.inputs import render
from mgen.inputs.examples import crop_frames
from mgen.inputs.records import RecordSource
from mgen.inputs.tokens import TokenSource


def check_pair(source: TokenSource, records: RecordSource, config: Any) -> None:
    """Raises `UserError` where the tokens were made of another dataset, or the audio they were made
    of has another form than `config` asks for."""
    made_of = source.manifest.get("dataset", {})
    if made_of.get("fingerprint") != records.fingerprint:
        raise UserError(
            f"{source.folder}: was made of {made_of.get('name')!r} "
            f"({str(made_of.get('fingerprint'))[:12]}), data.audio is {records.folder} "
            f"({records.fingerprint[:12]})"
        )
    player = source.manifest["render"]
    for name in ("sample_rate", "channels"):
        if config[name] != player[name]:
            raise UserError(f"data.{name} is {config[name]}, {source.folder} has {player[name]}")


class AudioCodesExample:
    """{"audio": float32 [T, C], "codes": int32 [F, K]}: a random crop, and the tokens of it."""

    def __init__(
        self,
        sources: Sequence[tuple[TokenSource, RecordSource]],
        config: dict[str, Any],
        seed: int,
    ):
        self.sources = sources
        self.config = config
        self.seed = seed
        self.players = [
            render.RenderConfig(**tokens.manifest["render"]) for tokens, _ in self.sources
        ]

    def __call__(self, g: int, pair: tuple[int, int]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, g])
        tokens, records = self.sources[pair[0]]
        config, piece = self.config, tokens[pair[1]]
        name, _, seed = piece["id"].rpartition("/")
        codes = piece[config["streams"][0]]
        length = crop_frames(tokens, config["streams"][0], config["seconds"])
        first = int(rng.integers(len(codes) - length + 1))
        start = first / tokens.manifest["streams"][config["streams"][0]]["frame_rate"]
        renders = tokens.manifest["renders"] if records.scores else 1
        record = records[tokens.item(pair[1]) // renders]
        if record.id != name:
            raise UserError(f"{tokens.folder}: piece {name} is not in {records.folder}")
        if record.is_score:
            performance = render.perform(record, seed=int(seed), config=self.players[pair[0]])
            audio = render.render_crop(performance, start=start, duration=config["seconds"]).mix
        else:
            layout = dict(sample_rate=config["sample_rate"], channels=config["channels"])
            span = dict(start=start, duration=config["seconds"])
            audio = np.sum([io.read(s, **span, **layout) for s in record.audio if s], axis=0)
        return {"audio": audio.astype(np.float32), "codes": codes[first : first + length]}
