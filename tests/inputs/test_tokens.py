"""Token datasets and the conditions stored in them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen import manifest
from mgen.errors import UserError
from mgen.inputs import attributes, pipeline, tokens

STREAMS = {
    "acoustic": dict(sample_rate=16000, frame_rate=50.0, codebooks=4, codebook_size=1024),
    "semantic": dict(sample_rate=24000, frame_rate=25.0, codebooks=1, codebook_size=512),
}
MANIFEST = {"kind": "tokens", "streams": STREAMS, "parents": {"codec": "abc"}}
CONDITION = np.array([3, 1, 0, 2], np.int32)


def codes(index: int, frames: int = 200) -> np.ndarray:
    """A piece whose codes tell which piece and which frame they are of."""
    time = np.arange(frames)
    return np.stack([time % 1024, np.full(frames, index), time // 1024, time % 7], 1)


def write_shard(folder: Path, split: str, shard: int, count: int = 3, num_shards: int = 2) -> Path:
    with tokens.ShardWriter(folder, split, shard, num_shards) as writer:
        for piece in range(count):
            index = shard * count + piece
            writer.write(
                id=f"piece/{index}",
                attributes=CONDITION,
                acoustic=codes(index, 100 + 50 * index),
                semantic=codes(index, 50 + 25 * index)[:, :1],
                joint_embedding=np.full((index + 1, 3), index / 8, np.float32),
            )
    return folder / tokens.shard_name(split, shard, num_shards)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    manifest.write(tmp_path, MANIFEST)
    for split in ("train", "validation"):
        for shard in range(2):
            write_shard(tmp_path, split, shard)
    assert tokens.finish(tmp_path, ["train", "validation"], 2)
    return tmp_path


def test_round_trip(folder: Path) -> None:
    source = tokens.open_tokens(folder, "train", {"streams": {"acoustic": {"codebooks": 4}}})
    assert len(source) == 6
    assert source.frames["acoustic"].tolist() == [100, 150, 200, 250, 300, 350]
    assert source.frames["joint_embedding"].tolist() == [1, 2, 3, 4, 5, 6]
    for index in (5, 0, 3):
        piece = source[index]
        assert piece["id"] == f"piece/{index}" and piece["acoustic"].dtype == np.int32
        assert np.array_equal(piece["acoustic"], codes(index, 100 + 50 * index))
        assert np.array_equal(piece["semantic"], codes(index, 50 + 25 * index)[:, :1])
        assert np.array_equal(piece["attributes"], CONDITION)
        expected = np.full((index + 1, 3), index / 8, np.float32)
        assert np.array_equal(piece["joint_embedding"], expected)
        assert piece["joint_embedding"].dtype == np.float32
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy[4]["acoustic"], source[4]["acoustic"])
    some = tokens.open_tokens(folder, "train", streams=["semantic"])[2]
    assert some.keys() == {"id", "attributes", "semantic"}
    with pytest.raises(UserError, match="no stream 'joint', only acoustic"):
        tokens.open_tokens(folder, "train", streams=["joint"])


def test_large_codes_and_pieces_without_frames_survive(tmp_path: Path) -> None:
    manifest.write(tmp_path, MANIFEST)
    with tokens.ShardWriter(tmp_path, "train", 0, 1) as writer:
        writer.write(id="x", attributes=CONDITION, acoustic=np.array([[70000]]))
        writer.write(id="y", attributes=CONDITION, acoustic=np.zeros((0, 1), np.int32))
        with pytest.raises(ValueError, match="of the piece before"):
            writer.write(id="z", attributes=CONDITION)
    source = tokens.open_tokens(tmp_path, "train")
    assert source[0]["acoustic"].tolist() == [[70000]] and source[1]["acoustic"].shape == (0, 1)


def test_finished_only_when_all_shards_are_there(tmp_path: Path) -> None:
    write_shard(tmp_path, "train", 0)
    assert not tokens.finish(tmp_path, ["train"], 2)
    assert not list(tmp_path.glob("*info*"))
    write_shard(tmp_path, "train", 1)
    assert tokens.finish(tmp_path, ["train"], 2)
    assert (tmp_path / "COMPLETED").exists()
    stats = json.loads((tmp_path / "stats.train.json").read_text())
    assert stats["examples"] == 6 and stats["acoustic_tokens"] == 4 * sum(range(100, 400, 50))
    assert stats["semantic_max_tokens"] == 175


def test_fewer_pieces_than_shards(tmp_path: Path) -> None:
    manifest.write(tmp_path, MANIFEST)
    write_shard(tmp_path, "train", 0, count=0)
    write_shard(tmp_path, "train", 1, count=2)
    assert tokens.finish(tmp_path, ["train"], 2)
    source = tokens.open_tokens(tmp_path, "train")
    assert [source[i]["id"] for i in range(len(source))] == ["piece/2", "piece/3"]


def test_same_pieces_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_shard(tmp_path / name, "train", 1) for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()


def test_interruption_leaves_nothing_and_finished_shards_stay(tmp_path: Path) -> None:
    assert tokens.shards_todo(tmp_path, "train", 3) == [0, 1, 2]
    with (
        pytest.raises(KeyboardInterrupt),
        tokens.ShardWriter(tmp_path, "train", 0, 3) as writer,
    ):
        writer.write(id="x", attributes=CONDITION, acoustic=codes(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    write_shard(tmp_path, "train", 1, num_shards=3)
    assert tokens.shards_todo(tmp_path, "train", 3) == [0, 2]
    assert tokens.shards_todo(tmp_path, "train", 3, shard_index=1, shard_count=2) == []
    assert tokens.shards_todo(tmp_path, "train", 3, shard_index=0, shard_count=2) == [0, 2]
    assert tokens.shards_todo(tmp_path, "validation", 3) == [0, 1, 2]
    with pytest.raises(FileExistsError):
        tokens.ShardWriter(tmp_path, "train", 1, 3)
    with pytest.raises(UserError, match="cut into 3 shards, expected 4"):
        tokens.shards_todo(tmp_path, "train", 4)


def test_a_shard_whose_index_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tokens.files, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        write_shard(tmp_path, "train", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.zeros((3,), int), np.full((2, 2), -1)])
def test_bad_codes(tmp_path: Path, bad: np.ndarray) -> None:
    with (
        pytest.raises(ValueError, match="expected"),
        tokens.ShardWriter(tmp_path, "train", 0, 1) as writer,
    ):
        writer.write(id="x", attributes=CONDITION, acoustic=bad)


def test_what_does_not_fit_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"streams\.acoustic\.codebooks is 4, expected 8"):
        tokens.open_tokens(folder, "train", {"streams": {"acoustic": {"codebooks": 8}}})
    with pytest.raises(UserError, match="no split 'test'; found train, validation"):
        tokens.open_tokens(folder, "test")
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        tokens.open_tokens(tmp_path / "nowhere", "train")
    manifest.write(folder, {**MANIFEST, "kind": "codec"})
    with pytest.raises(UserError, match="kind is 'codec', expected 'tokens'"):
        tokens.open_tokens(folder, "train")


def test_damage_is_found_when_opening(folder: Path) -> None:
    shard = folder / tokens.shard_name("train", 1, 2)
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=f"{shard.name}: truncated"):
        tokens.open_tokens(folder, "train")
    shard.unlink()
    with pytest.raises(UserError, match="has 1 of 2 shards; the extraction is not finished"):
        tokens.open_tokens(folder, "train")
    index = folder / "validation.index-00000-of-00002.json"
    index.write_text(json.dumps({"frames": {"acoustic": [1]}, "offsets": [0], "features": {}}))
    with pytest.raises(UserError, match="offsets and frames disagree"):
        tokens.open_tokens(folder, "validation")


def test_damage_is_found_when_reading(folder: Path) -> None:
    shard = folder / tokens.shard_name("train", 1, 2)
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    source = tokens.open_tokens(folder, "train")
    assert source[0]["id"] == "piece/0"
    with pytest.raises(UserError, match=f"{shard.name}: damaged"):
        source[3]


def config(folder: Path, **overrides: Any) -> Any:
    return pipeline.default_config(
        dataset=str(folder), view="streams", **{"seconds": 3.0, "batch_size": 2, **overrides}
    )


def test_batches_are_aligned_crops(folder: Path) -> None:
    iterator = pipeline.make_iterator(config(folder), split="train", seed=0, train=True)
    starts = set()
    for _ in range(8):
        batch = next(iterator)
        assert batch["acoustic"].shape == (2, 150, 4) and batch["acoustic"].dtype == np.int32
        assert batch["attributes"].tolist() == [CONDITION.tolist()] * 2
        for crop in batch["acoustic"]:
            index, start = int(crop[0, 1]), int(crop[0, 0])
            assert index > 0  # the piece of 100 frames is left out
            assert np.array_equal(crop, codes(index, 100 + 50 * index)[start : start + 150])
            starts.add((index, start))
    assert len(starts) > 8
    state = iterator.get_state()
    expected = next(iterator)
    iterator.set_state(state)
    assert np.array_equal(next(iterator)["acoustic"], expected["acoustic"])
    with pytest.raises(UserError, match="longest piece of split 'train' has 350 frames"):
        pipeline.make_iterator(config(folder, seconds=8.0), split="train", seed=0, train=True)
    both = config(folder, streams=("acoustic", "semantic"))
    batch = next(pipeline.make_iterator(both, split="train", seed=0, train=True))
    assert batch["semantic"].shape == (2, 75, 1)
    # The same time: crops start where the slower stream has a frame.
    np.testing.assert_array_equal(batch["acoustic"][:, 0, 0] % 2, 0)


def test_check_returns_the_parents(folder: Path) -> None:
    requires = {"streams": {"acoustic": {"codebooks": 4}}}
    assert pipeline.check(config(folder), requires) == {"codec": "abc"}
    requires["streams"]["acoustic"]["codebook_size"] = 2048
    with pytest.raises(UserError, match=r"acoustic\.codebook_size is 1024, expected 2048"):
        pipeline.check(config(folder), requires)


def test_attributes_of_a_record(make_score: Any) -> None:
    record = make_score(0)
    assert attributes.describe(attributes.from_record(record)) == (
        "metre=4/4,mode=major,tempo=moderate,density=dense"
    )
    slow = attributes.from_record(record, tempo_scale=0.5)
    assert attributes.describe(slow).startswith("metre=4/4,mode=major,tempo=slow")
    # The longest stretch decides, also when it is in pieces.
    record.metres = np.array([[0, 3, 4], [4, 7, 8], [6, 3, 4]], np.float32)
    record.key, record.tempi, record.notes = "", record.tempi[:0], record.notes[:0]
    assert attributes.describe(attributes.from_record(record)) == "metre=3/4"
    record.metres[:, 1] = 7
    assert attributes.describe(attributes.from_record(record)) == "metre=other"


@settings(deadline=None)
@given(st.tuples(*(st.integers(0, size - 1) for size in attributes.sizes())))
def test_parse_inverts_describe(values: tuple[int, ...]) -> None:
    condition = np.array(values, np.int32)
    assert np.array_equal(attributes.parse(attributes.describe(condition)), condition)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("meter=3/4", "a field of metre, mode, tempo, density"),
        ("mode=dorian", "mode to be one of unknown, major, minor"),
        ("minor", "expected field=value"),
    ],
)
def test_parse_says_what_is_valid(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attributes.parse(text)


def test_value_zero_is_unknown_everywhere() -> None:
    assert all(values[0] == attributes.UNKNOWN for values in attributes.NAMES.values())
    assert attributes.parse("").tolist() == [0] * len(attributes.NAMES)
