"""Audio beside its tokens: the crop is the one that the codes were made of."""

import dataclasses

import numpy as np
import pytest

from mgen import manifest
from mgen.errors import UserError
from mgen.inputs import mixes, pipeline, render, tokens
from mgen.inputs.records import describe, open_records

RATE, FRAMES = 8000, 20.0  # Hz


def level(audio):
    """A code for every frame that tells its sound: mean square in steps of 0.5 dB."""
    power = np.square(audio[: len(audio) // 400 * 400]).reshape(-1, 400).mean(-1)
    return np.clip(200 + 20 * np.log10(power + 1e-10), 0, None).round().astype(np.int32)[:, None]


def make_tokens(dataset, out, renders=2, shards=3):
    source = open_records(dataset, "train")
    player = render.RenderConfig(sample_rate=RATE)
    stream = dict(frame_rate=FRAMES, codebooks=1, codebook_size=256, sample_rate=RATE, channels=1)
    manifest.write(
        out,
        {
            "kind": tokens.KIND,
            "streams": {"acoustic": stream},
            "render": dataclasses.asdict(player),
            "dataset": describe(source.folder),
            "renders": renders,
            "parents": {"codec": "abc"},
        },
    )
    count = renders if source.scores else 1
    items = [(i, variant) for i in range(len(source)) for variant in range(count)]
    for shard in range(shards):
        with tokens.ShardWriter(out, "train", shard, shards) as writer:
            for index, seed in items[shard::shards]:
                audio, fields = mixes.whole_mix(source[index], player, seed, 10.0)
                name = f"{source[index].id}/{seed}"
                writer.write(id=name, attributes=fields, acoustic=level(audio))
    tokens.finish(out, ["train"], shards)
    return out


def config(folder, audio, **more):
    fields = dict(view="audio_codes", sample_rate=RATE, seconds=1.5, batch_size=4)
    fields |= dict(eval_split="train", dataset=str(folder), audio=str(audio))
    return pipeline.default_config(**(fields | more))


@pytest.mark.parametrize("kind", ["scores", "recordings"])
def test_the_codes_are_those_of_the_audio(kind, request, tmp_path):
    dataset = request.getfixturevalue(kind)
    settings = config(make_tokens(dataset, tmp_path / "tokens"), dataset)
    assert pipeline.check(settings, {"streams": {"acoustic": {"codebooks": 1}}}) == {"codec": "abc"}
    batches = pipeline.make_iterator(settings, split="train", seed=1, train=True)
    for _ in range(4):
        batch = next(batches)
        assert batch["audio"].shape == (4, 12000, 1) and batch["codes"].shape == (4, 30, 1)
        for audio, codes in zip(batch["audio"], batch["codes"]):
            # A recording's crop is resampled by itself: its edges differ a little.
            assert np.abs(level(audio) - codes)[1:-1].max() <= 1
        assert np.ptp(batch["codes"]) > 3


def test_other_datasets_rates_and_counts_are_refused_by_name(scores, recordings, tmp_path):
    folder = make_tokens(scores, tmp_path / "tokens", renders=1)
    for settings, message in (
        (config(folder, recordings), "was made of"),
        (config(folder, scores, sample_rate=16000), "data.sample_rate is 16000"),
        (config(folder, ""), "data.audio names 0"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.check(settings, {})
