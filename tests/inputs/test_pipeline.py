"""Batches: what is in them, that they are reproducible, and that the iterator's state is exact."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.errors import UserError
from mgen.inputs import pipeline
from mgen.inputs.record import Record

RATE = 22050  # of the recordings, so that nothing is resampled where a test looks at samples


def config(dataset: Path | str, **overrides: Any) -> Any:
    defaults = dict(
        dataset=str(dataset), view="stems", sample_rate=RATE, seconds=0.25, batch_size=4, prefetch=0
    )
    return pipeline.default_config(**{**defaults, **overrides})


def batches(settings: Any, **options: Any) -> pipeline.Iterator:
    train = options.pop("train", True)
    split = "train" if train else "validation"
    return pipeline.make_iterator(
        settings, **{"split": split, "seed": 0, "train": train, **options}
    )


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert np.array_equal(one[name], other[name]), name


def pieces(stems: np.ndarray) -> list[int]:
    """Which recording each example is of: its first stem is a sine of 200 + 10 * index Hz."""
    seconds = stems.shape[2] / RATE
    spectra = np.abs(np.fft.rfft(stems[:, 0, :, 0] * np.hanning(stems.shape[2]), axis=1))
    return np.rint((spectra.argmax(1) / seconds - 200) / 10).astype(int).tolist()


@pytest.mark.parametrize("kind", ["scores", "recordings"])
@pytest.mark.parametrize("channels", [1, 2])
def test_views(kind: str, channels: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    batch = next(batches(config(folder, channels=channels, sample_rate=16000)))
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {
        "stems": ((4, 4, 4000, channels), np.float32),
        "mix": ((4, 4000, channels), np.float32),
        "stem_mask": ((4, 4), np.bool_),
        "programs": ((4, 4), np.int32),
    }
    for stems, mix, mask in zip(batch["stems"], batch["mix"], batch["stem_mask"]):
        assert np.array_equal(mix, stems.sum(0))
        assert not stems[~mask].any()
        assert 0.01 < np.abs(mix).max() <= 1
    audio = next(batches(config(folder, channels=channels, view="audio")))["audio"]
    assert audio.shape == (4, round(0.25 * RATE), channels) and audio.dtype == np.float32


def test_every_epoch_has_each_piece_once_in_its_own_order_and_crop(recordings: Path) -> None:
    iterator = batches(config(recordings, batch_size=6, seconds=0.5))
    epochs = [next(iterator)["stems"] for _ in range(3)]
    orders = [pieces(stems) for stems in epochs]
    assert all(sorted(order) == [0, 1, 2, 3, 4, 5] for order in orders)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    crops = [stems[order.index(1)] for stems, order in zip(epochs, orders)]
    assert not np.array_equal(crops[0], crops[1])


def test_seed_decides(scores: Path) -> None:
    first, again, other = (next(batches(config(scores), seed=seed)) for seed in (3, 3, 4))
    assert_equal(first, again)
    assert not np.array_equal(first["mix"], other["mix"])
    offset = next(batches(config(scores, seed=1), seed=2))
    assert_equal(offset, first)


def test_evaluation_is_one_fixed_pass_over_every_piece(recordings: Path, scores: Path) -> None:
    settings = config(recordings, batch_size=4, seconds=0.5, remix=1.0, gain_db=(-20.0, -10.0))
    passes = [list(batches(settings, train=False)) for _ in range(2)]
    assert len(passes[0]) == 1
    assert pieces(passes[0][0]["stems"]) == [7, 8, 7, 8]  # filled up from the start
    assert np.abs(passes[0][0]["stems"][:, 0]).max() > 0.19  # no augmentation
    for one, other in zip(*passes):
        assert_equal(one, other)
    assert len(list(batches(config(scores), train=False))) == 2  # five pieces


def test_processes_share_the_batch_of_one(recordings: Path) -> None:
    settings = config(recordings)
    whole = batches(settings)
    parts = [batches(settings, process_index=p, process_count=2) for p in range(2)]
    for _ in range(3):
        expected, shares = next(whole), [next(part) for part in parts]
        assert shares[0]["mix"].shape[0] == 2
        for name in expected:
            joined = np.stack([share[name] for share in shares], 1).reshape(expected[name].shape)
            assert np.array_equal(joined, expected[name])


@settings(deadline=None, max_examples=8)
@given(before=st.integers(0, 7), after=st.integers(0, 4), prefetch=st.integers(0, 2))
def test_restored_iterator_goes_on_identically(
    scores: Path, before: int, after: int, prefetch: int
) -> None:
    settings = config(scores, sample_rate=8000, batch_size=2, prefetch=prefetch)
    iterator = batches(settings)
    for _ in range(before):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(after + 1)]
    fresh = batches(settings)
    for restored in (iterator, fresh):
        restored.set_state(state)
        for batch in expected:
            assert_equal(next(restored), batch)


def test_state_goes_through_orbax(scores: Path, tmp_path: Path) -> None:
    settings = config(scores, sample_rate=8000)
    iterator = batches(settings)
    next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(1, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = next(iterator)
        fresh = batches(settings)
        restore = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh))
        manager.restore(1, args=restore)
    assert_equal(next(fresh), expected)


def test_workers_change_nothing_and_restore_exactly(scores: Path) -> None:
    expected = batches(config(scores, sample_rate=8000))
    iterator = batches(config(scores, sample_rate=8000, workers=2, prefetch=1))
    try:
        for _ in range(3):
            assert_equal(next(iterator), next(expected))
        state, here = iterator.get_state(), expected.get_state()
        for _ in range(2):
            assert_equal(next(iterator), next(expected))
        iterator.set_state(state)
        expected.set_state(here)
        for _ in range(2):
            assert_equal(next(iterator), next(expected))
    finally:
        iterator.close()


def test_mixture_follows_the_weights(recordings: Path, scores: Path) -> None:
    settings = config(f"{recordings}, {scores}", weights=(3.0, 1.0), batch_size=8)
    iterator = batches(settings)
    masks = np.concatenate([next(iterator)["stem_mask"] for _ in range(3)])
    # Of the recordings all, of the scores one in ten has no fourth stem.
    assert 16 <= (~masks[:, 3]).sum() <= 20
    assert len(list(batches(settings, train=False))) == 1  # 2 + 5 pieces


def test_source_chooses_mix_or_stem(recordings: Path) -> None:
    def peaks(source: str) -> np.ndarray:
        found = batches(config(recordings, view="audio", source=source, batch_size=24))
        return np.abs(next(found)["audio"]).max((1, 2))

    assert (peaks("stems") < 0.21).all()
    assert (peaks("mix") > 0.3).all()
    both = peaks("any")
    assert (both < 0.21).any() and (both > 0.3).any()


def test_quiet_crops_are_drawn_again(
    tmp_path: Path, make_score: Callable[..., Record], write_records: Callable[..., Path]
) -> None:
    record = make_score(0, seconds=40.0)
    record.notes = record.notes[record.notes[:, 0] > 30]  # three quarters are silent
    folder = write_records(tmp_path, {"train": [record]})

    def silent(attempts: int) -> int:
        settings = config(folder, attempts=attempts, batch_size=30, sample_rate=8000)
        return int((np.abs(next(batches(settings))["mix"]).max((1, 2)) < 1e-3).sum())

    assert silent(1) > 15
    assert silent(8) < 8


def test_crops_of_one_sounding_stem_are_drawn_again(
    tmp_path: Path, make_score: Callable[..., Record], write_records: Callable[..., Path]
) -> None:
    """A piece whose bass plays all along, and the others in its last quarter only."""
    record = make_score(0, seconds=40.0)
    record.notes = record.notes[(record.notes[:, 0] > 30) | (record.notes[:, 4] == 0)]
    folder = write_records(tmp_path, {"train": [record]})

    def sounding(stem: int | None = None, **fields: Any) -> int:
        """Of 30 crops, those with two stems that sound, or with this one."""
        settings = config(folder, batch_size=30, sample_rate=8000, **fields)
        stems = next(batches(settings))["stems"]
        heard = np.sqrt(np.square(stems).mean((2, 3))) > 10 ** (settings.min_loudness / 20)
        return int((heard.sum(1) >= 2 if stem is None else heard[:, stem]).sum())

    assert sounding(attempts=8) < 15
    assert sounding(attempts=8, min_sounding=2) > 22
    assert sounding(0, attempts=8, stems=("piano",)) < 15
    assert sounding(0, attempts=8, stems=("piano",), min_sounding=2) > 22
    # A piece remixed with itself: each of the others is taken where it sounds.
    assert sounding(3, attempts=8, remix=1.0) < 15
    assert sounding(3, attempts=8, remix=1.0, min_sounding=1) > 22


def test_stems_are_picked_by_name(recordings: Path) -> None:
    """The fourth is missing in all pieces; the mix stays that of all."""
    whole = next(batches(config(recordings)))
    picked = next(batches(config(recordings, stems=("piano", "drums"))))
    assert_equal(
        picked,
        {name: x if name == "mix" else x[:, [3, 1]] for name, x in whole.items()},
    )
    assert picked["stem_mask"].tolist() == [[False, True]] * 4
    with pytest.raises(UserError, match=r"no stem 'voice' in .*; found bass, drums, guitar"):
        pipeline.check(config(recordings, stems=("voice",)), {})


def test_remix_takes_stems_of_other_pieces(recordings: Path) -> None:
    batch = next(batches(config(recordings, remix=1.0, batch_size=8, seconds=0.5)))
    own = pieces(batch["stems"])
    # The second stem is at 300 + 10 * index Hz.
    other = [index - 10 for index in pieces(batch["stems"][:, 1:])]
    assert set(own) | set(other) <= set(range(6))
    assert own != other
    assert np.array_equal(batch["mix"], batch["stems"].sum(1))


def test_what_is_known_of_a_remixed_stem_is_its_own(scores: Path) -> None:
    """One piece of ten has no piano: where the stems come from several, the mask still says where
    there is one."""
    settings = config(scores, remix=1.0, batch_size=40, sample_rate=8000, attempts=8)
    batch = next(batches(settings, seed=1))
    present = np.abs(batch["stems"]).max((2, 3)) > 0
    assert np.array_equal(present[:, 3], batch["stem_mask"][:, 3])
    assert 0 < (~present[:, 3]).sum() < 20
    assert (batch["programs"] >= 0).all()


def test_augmentations_keep_the_sum_and_the_mask(recordings: Path) -> None:
    settings = config(
        recordings, stem_dropout=0.5, gain_db=(-6.0, 30.0), loudness=-20.0, batch_size=16
    )
    batch = next(batches(settings))
    assert 0 < batch["stem_mask"].sum(1).min() < batch["stem_mask"].sum(1).max()
    assert not batch["stems"][~batch["stem_mask"]].any()
    assert np.array_equal(batch["mix"], batch["stems"].sum(1))
    assert np.abs(batch["mix"]).max() <= 1 + 1e-6


def test_recordings_shorter_than_a_crop_are_followed_by_zeros(recordings: Path) -> None:
    mix = next(batches(config(recordings, seconds=5.0)))["mix"]
    assert mix.shape[1] == 5 * RATE
    assert np.abs(mix[:, : 4 * RATE]).max() > 0.1 and not mix[:, 4 * RATE :].any()


def test_open_records_is_random_access(scores: Path) -> None:
    # Three levels up: name/config/version in other builders, tiny/1.0.0 here.
    source = pipeline.open_records(scores.parent.parent, "train")
    assert len(source) == 10
    assert [source[i].id for i in (7, 0)] == ["score/7", "score/0"]
    assert source[2].stem_mask.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": ""}, "data.dataset is empty"),
        ({"dataset": "/nowhere"}, "no folder '/nowhere'"),
        ({"view": "midi"}, "data.view is 'midi'"),
        ({"channels": 3}, "data.channels is 3"),
        ({"seconds": 0.0}, "data.seconds is 0.0"),
        ({"remix": 2.0}, "data.remix is 2.0, expected a probability"),
        ({"weights": (1.0, 2.0)}, "data.weights has 2 values"),
        ({"workers": -1}, "data.workers is -1"),
        ({"min_sounding": -1}, "data.min_sounding is -1"),
    ],
)
def test_bad_fields(scores: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        batches(config(fields.pop("dataset", scores), **fields))


def test_unknown_keys_raise(scores: Path) -> None:
    with pytest.raises(KeyError):
        config(scores, sampel_rate=1)


def test_batch_must_divide(scores: Path) -> None:
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        batches(config(scores), process_count=3)


def test_bad_datasets(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'; found train, validation"):
        pipeline.open_records(recordings, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no prepared dataset here"):
        pipeline.open_records(tmp_path / "empty", "train")
    for name in ("one", "two"):
        shutil.copytree(recordings, tmp_path / "both" / name)
    with pytest.raises(UserError, match=r"holds several datasets \(one, two\)"):
        pipeline.open_records(tmp_path / "both", "train")

    shard = next((tmp_path / "both" / "one").glob("*train*"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=f"{shard.name}: truncated"):
        pipeline.open_records(shard.parent, "train")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: missing"):
        pipeline.open_records(shard.parent, "train")


def test_stems_of_mixed_datasets_must_agree(
    recordings: Path,
    tmp_path: Path,
    make_score: Callable[..., Record],
    write_records: Callable[..., Path],
) -> None:
    record = make_score(0)
    record.stem_names = ["soprano", "alto", "tenor", "bass"]
    voices = write_records(tmp_path, {"train": [record]})
    with pytest.raises(UserError, match=r"stems are .*soprano.*expected .*drums"):
        batches(config(f"{recordings},{voices}"))


def test_check_opens_both_splits(recordings: Path) -> None:
    assert pipeline.check(config(recordings), {}) == {}
    with pytest.raises(UserError, match="no split 'held_out'"):
        pipeline.check(config(recordings, eval_split="held_out"), {})
