"""Stages joined: a dataset and its codec, a language model and the codec whose tokens it speaks.

The one module that knows more than one family. `launch/` and the notebooks call it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgen import manifest, progress
from mgen.audio import io
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.inputs import attributes, render, tokens
from mgen.inputs.record import Record
from mgen.inputs.records import open_records
from mgen.lm.model import LMConfig
from mgen.lm.sample import FrozenLM, SamplingConfig
from mgen.train.checkpoint import Trained, load_trained
from mgen.typing import Array, ndarray

# What a consumer of tokens checks; copied from the codec's manifest.
TOKEN_FIELDS = ("sample_rate", "channels", "frame_rate", "codebooks", "codebook_size")


def load_codec(workdir: str | Path) -> tuple[FrozenCodec, Trained]:
    """The codec trained in `workdir`; `UserError` where there is none."""
    trained = load_trained(workdir, "codec")
    return FrozenCodec.from_trained(trained.config, trained.params, trained.variables), trained


def tokenize(
    codec_workdir: str | Path,
    dataset: str | Path,
    splits: list[str],
    out: str | Path,
    *,
    num_shards: int = 4,
    shard_index: int = 0,
    shard_count: int = 1,
    renders: int = 1,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> None:
    """Writes the codes of a dataset's mixes; goes on with the shards that are missing.

    Piece i of a split goes to shard i mod `num_shards`; the files do not depend on who writes them.

    Args:
      out: folder of the token dataset, see `mgen.inputs.tokens`.
      shard_index, shard_count: this worker and how many there are.
      renders: performances of each score, with as many seeds from `seed`; a recording has one.
      max_seconds: of each piece, from its start.

    Raises `UserError` where `out` holds tokens made otherwise, naming the field.
    """
    codec, trained = load_codec(codec_workdir)
    config = codec.config
    records = {split: open_records(dataset, split) for split in splits}
    player = render.RenderConfig(
        sample_rate=config.sample_rate, channels=config.channels, **trained.config.data.render
    )
    claim_tokens(out, trained, dict(renders=renders, max_seconds=max_seconds, seed=seed))
    for split, source in records.items():
        count = renders if source[0].is_score else 1
        items = [(i, seed + variant) for i in range(len(source)) for variant in range(count)]
        for shard in tokens.shards_todo(out, split, num_shards, shard_index, shard_count):
            mine = items[shard::num_shards]
            name = f"tokenize {split} {shard + 1}/{num_shards}"
            with tokens.ShardWriter(out, split, shard, num_shards) as writer:
                for index, variant in progress.track(mine, name, unit="pieces"):
                    record = source[index]
                    audio, fields = _whole(record, player, variant, max_seconds)
                    codes = codec.encode_long(audio[None])[0]
                    writer.write(id=f"{record.id}/{variant}", codes=codes, attributes=fields)


def claim_tokens(out: str | Path, trained: Trained, options: dict[str, Any]) -> None:
    """Writes the manifest of a token dataset, or refuses a folder whose manifest says otherwise."""
    about = {
        "kind": tokens.KIND,
        "parents": {"codec": trained.fingerprint},
        "attributes": {name: list(values) for name, values in attributes.NAMES.items()},
        **{name: trained.manifest[name] for name in TOKEN_FIELDS},
        **options,
    }
    if (Path(out) / manifest.FILE).exists():
        manifest.require(manifest.read(out), Path(out) / manifest.FILE, **about)
    else:
        manifest.write(out, about)


def _whole(
    record: Record, player: render.RenderConfig, seed: int, max_seconds: float
) -> tuple[ndarray, ndarray]:
    """The mix of a piece float32 [T, C] and its attributes int32 [A]."""
    if record.is_score:
        performance = render.perform(record, seed=seed, config=player)
        seconds = min(performance.duration, max_seconds)
        mix = render.render_crop(performance, start=0.0, duration=seconds).mix
        return mix, attributes.from_record(record, performance.tempo_scale)
    seconds = min(record.duration, max_seconds)
    layout = dict(sample_rate=player.sample_rate, channels=player.channels)
    stems = [io.read(stem, duration=seconds, **layout) for stem in record.audio if stem]
    return np.sum(stems, axis=0), attributes.from_record(record)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A trained language model with its codec.

    Attributes:
      about: fingerprints of both, for the JSON beside a clip.
    """

    lm: FrozenLM
    codec: FrozenCodec
    about: dict[str, str]

    def generate(
        self,
        seconds: float,
        seeds: ndarray,
        sampling: SamplingConfig,
        condition: str = "",
        prompt: str | Path = "",
    ) -> tuple[ndarray, ndarray]:
        """Codes int32 [B, F, K] and audio float32 [B, T, C], one clip a seed.

        Args:
          seconds: length of a clip, the prompt included.
          condition: see `mgen.inputs.attributes.parse`.
          prompt: audio file that every clip goes on from; any sample rate and channel count.

        Raises `UserError` for a condition or a prompt that does not fit.
        """
        frames = max(1, round(seconds * self.codec.config.frame_rate))
        fields = None
        if self.lm.config.attribute_sizes:
            fields = jnp.tile(attributes.parse(condition), (len(seeds), 1))
        elif condition:
            raise UserError(f"--condition={condition}: this model was trained without conditions")
        codes = self.lm.generate(
            frames=frames,
            seeds=jnp.asarray(seeds),
            prompt=self._prompt_codes(prompt, seconds, len(seeds)) if prompt else None,
            attributes=fields,
            sampling=sampling,
        )
        return np.asarray(codes), self.codec.decode_long(np.asarray(codes))

    def _prompt_codes(self, prompt: str | Path, seconds: float, batch: int) -> Array:
        config = self.codec.config
        length = io.info(prompt).duration
        if length >= seconds:
            raise UserError(
                f"{prompt}: {length:.1f} s long, expected less than the {seconds:.1f} s of the clip"
            )
        audio = io.read(prompt, sample_rate=config.sample_rate, channels=config.channels)
        codes = self.codec.encode_long(audio[None])[:, : int(length * config.frame_rate)]
        return jnp.tile(codes, (batch, 1, 1))


def load(lm_workdir: str | Path, codec_workdir: str | Path) -> Chain:
    """Both from their workdirs; `UserError` where the tokens were made by another codec."""
    trained = load_trained(lm_workdir, "lm")
    codec, codec_trained = load_codec(codec_workdir)
    parent = trained.manifest["parents"].get("codec")
    if parent != codec_trained.fingerprint:
        raise UserError(
            f"{lm_workdir}: was trained on tokens of codec {str(parent)[:12]}, "
            f"{codec_workdir} is codec {codec_trained.fingerprint[:12]}"
        )
    shape = trained.config.codec
    config = LMConfig.from_config(
        trained.config.model, num_codebooks=shape.codebooks, codebook_size=shape.codebook_size
    )
    lm = FrozenLM.from_trained(config, trained.params)
    about = {"lm": trained.fingerprint, "codec": codec_trained.fingerprint}
    return Chain(lm, codec, about)
