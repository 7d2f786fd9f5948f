"""What SeqIO reads from a token dataset is what Grain reads."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mgen import manifest
from mgen.errors import UserError
from mgen.inputs import seqio_tasks, tokens

pytestmark = pytest.mark.tf
# Not importorskip: importing it takes seconds, also where these tests are not selected.
if importlib.util.find_spec("seqio") is None:
    pytest.skip("needs the extra `scale`", allow_module_level=True)

STREAMS = {
    "acoustic": dict(sample_rate=16000, frame_rate=50.0, codebooks=4, codebook_size=100),
    "semantic": dict(sample_rate=16000, frame_rate=25.0, codebooks=1, codebook_size=30),
    "joint": dict(frame_rate=1.0, window_seconds=3.0, codebooks=2, codebook_size=16),
}
CHROMA = dict(frame_rate=2.0, width=12)  # vectors, no tokens


def write(folder: Path, pieces: int = 6, seed: int = 0) -> Path:
    """Codes that tell their time: semantic code s is at 25 Hz, and so on, modulo the sizes."""
    rng = np.random.default_rng(seed)
    manifest.write(folder, {"kind": "tokens", "streams": {**STREAMS, "chroma": CHROMA}})
    for split in ("train", "validation"):
        for shard in range(2):
            with tokens.ShardWriter(folder, split, shard, 2) as writer:
                for index in range(shard, pieces, 2):
                    seconds = 8 + index
                    writer.write(
                        id=f"{split}/{seed}/{index}",
                        attributes=np.array([index, 1], np.int32),
                        acoustic=rng.integers(0, 100, (50 * seconds, 4)),
                        semantic=np.arange(25 * seconds)[:, None] % 30,
                        joint=np.arange(seconds - 2)[:, None].repeat(2, 1),
                        chroma=np.ones((2 * seconds, 12), np.float32),
                        joint_embedding=rng.normal(size=(seconds - 2, 5)).astype(np.float32),
                    )
    tokens.finish(folder, ["train", "validation"], 2)
    return folder


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    import seqio

    yield
    seqio.TaskRegistry.reset()
    seqio.MixtureRegistry.reset()


def flat(codes: np.ndarray, size: int) -> list[int]:
    return [*(codes + 2 + size * np.arange(codes.shape[1])).ravel().tolist(), 1]


@pytest.mark.parametrize("use_cached", [True, False])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_whole_pieces(tmp_path: Path, use_cached: bool, split: str) -> None:
    # The folder's name is not the task's.
    task = seqio_tasks.register(write(tmp_path / "some folder"), "tokens")
    data = task.get_dataset(split=split, use_cached=use_cached, shuffle=False)
    found = {piece["id"].decode(): piece for piece in data.as_numpy_iterator()}
    source = tokens.open_tokens(tmp_path / "some folder", split)
    assert len(found) == len(source) == 6
    for index in range(6):
        piece = source[index]
        other = found[piece["id"]]
        for name, about in STREAMS.items():
            assert other[name].dtype == np.int32
            assert other[name].tolist() == flat(piece[name], about["codebook_size"])
        assert other["attributes"].tolist() == piece["attributes"].tolist()
        if use_cached:
            np.testing.assert_array_equal(other["joint_embedding"], piece["joint_embedding"])
    vocabulary = task.output_features["acoustic"].vocabulary
    assert vocabulary.vocab_size == 402 and vocabulary.eos_id == 1
    assert task.get_cached_stats(split)["examples"] == 6
    assert task.get_cached_stats(split)["joint_tokens"] == 2 * sum(range(6, 12))


def test_crops_are_aligned(tmp_path: Path) -> None:
    folder = write(tmp_path)
    levels = {"acoustic": (1, 3), "semantic": (0, 1), "joint": (0, 2)}
    task = seqio_tasks.register(folder, "crops", seconds=5.0, levels=levels)
    source = tokens.open_tokens(folder, "train")
    pieces = {source[i]["id"]: source[i] for i in range(len(source))}
    starts = set()
    for epoch in range(3):
        data = task.get_dataset(split="train", use_cached=True, shuffle=False, seed=epoch)
        for crop in data.as_numpy_iterator():
            piece = pieces[crop["id"].decode()]
            # Joint code w of level 0 is w: the crop's start in seconds; 3 s windows in 5 s are 3.
            start = int(crop["joint"][0]) - 2
            assert crop["joint"].tolist() == flat(piece["joint"][start : start + 3], 16)
            semantic = piece["semantic"][25 * start : 25 * (start + 5)]
            assert crop["semantic"].tolist() == flat(semantic, 30)
            acoustic = piece["acoustic"][50 * start : 50 * (start + 5), 1:3]
            assert crop["acoustic"].tolist() == flat(acoustic, 100)
            starts.add((piece["id"], start))
    assert len(starts) > 9  # not always the same
    vocabulary = task.output_features["acoustic"].vocabulary
    assert vocabulary.vocab_size == 202


def test_mixture_keeps_its_rates(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        seqio_tasks.register(write(tmp_path / name, seed=seed), name, seconds=2.0)
    mixed = seqio_tasks.mixture("both", {"one": 3.0, "two": 1.0})
    data = mixed.get_dataset(
        split="train", use_cached=True, seed=0, passthrough_features=["id"], num_epochs=None
    )
    ids = [piece["id"].decode() for piece in data.take(800).as_numpy_iterator()]
    share = np.mean([name.startswith("train/1/") for name in ids])
    # Four standard deviations of 800 draws.
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 800)


def test_seqio_can_cache_it_again(tmp_path: Path) -> None:
    """Its own pipeline writes the very records, so the format is SeqIO's and not ours."""
    import seqio
    import tensorflow as tf
    from seqio import utils

    folder = write(tmp_path / "ours", pieces=2)
    task = seqio_tasks.register(folder, "again")
    ours = tokens.open_tokens(folder, "train")[0]
    data = task.source.get_dataset("train", shuffle=False)
    piece = next(iter(task.preprocess_precache(data)))
    written = utils.dict_to_tfexample({k: v.numpy() for k, v in piece.items()})
    path = tmp_path / "again.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(written.SerializeToString())
    from mgen.inputs import tfrecord

    found = tfrecord.decode_example(tfrecord.unframe(path.read_bytes()))
    assert found["id"] == [ours["id"].encode()]
    assert np.array_equal(found["acoustic"], ours["acoustic"].ravel())
    assert seqio.__version__ == tokens.SEQIO_FORMAT


def test_what_does_not_fit(tmp_path: Path) -> None:
    folder = write(tmp_path / "ours", pieces=2)
    with pytest.raises(UserError, match="no stream 'melody', only acoustic"):
        seqio_tasks.register(folder, "a", levels={"melody": (0, 1)})
    with pytest.raises(UserError, match=r"levels of 'acoustic' are \(2, 5\)"):
        seqio_tasks.register(folder, "b", levels={"acoustic": (2, 5)})
    (folder / "COMPLETED").unlink()
    with pytest.raises(UserError, match="not finished"):
        seqio_tasks.register(folder, "c")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        seqio_tasks.register(tmp_path, "d")
