"""Codebooks and tokens of real (untrained, tiny) models: one pass, kills, workers, refusals."""

import dataclasses
import importlib
import importlib.util
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mgen import chain, features, manifest, tokenize, tokenize_beam
from mgen.audio import chroma
from mgen.errors import UserError
from mgen.inputs import attributes, mixes, pipeline, tokens
from mgen.inputs.records import open_records
from mgen.inputs.render import RenderConfig
from mgen.kmeans import Codebook, KMeansConfig
from mgen.train import checkpoint, loop

CONFIGS = {
    "codec": "codec.tiny_16khz",
    "semantic": "semantic.tiny_w2vbert",
    "joint": "joint.tiny_mulan",
    "melody": "joint.tiny_melody",
}
SMALL = KMeansConfig(size=16, batch=64, passes=2)
SECONDS = 4.0
HOP = 3.0  # s, of the melody's windows


def untrained(name, workdir, seed=0):
    """A workdir as `mgen train` leaves it after no step."""
    config = importlib.import_module(f"configs.{CONFIGS[name]}").get_config("smoke")
    # Together, the first model's `render` decides: all play alike, to be compared alone.
    config.data.render.instruments = "role"
    task = checkpoint.make_task(config)
    state = jax.jit(task.init)(jax.random.key(seed))
    # Files that a task copies into its workdir (a vocabulary) are not needed here.
    task.files = lambda: {}
    loop.claim_workdir(workdir, task, config, {}, False)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(0, state, SimpleNamespace(get_state=dict), config.to_dict())
    checkpoints.close()
    return str(workdir)


@pytest.fixture(scope="module")
def models(scores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    found = {name: untrained(name, folder / name) for name in CONFIGS}
    for name, layer, levels, size, stride in (
        ("semantic", 1, 1, 16, 1.0),
        ("joint", None, 3, 16, 1.0),
        ("melody", None, 2, 8, HOP),
    ):
        out = folder / f"{name}_codebook"
        config = dataclasses.replace(SMALL, levels=levels, size=size)
        of = features.of_encoder(found[name], layer, stride_seconds=stride)
        features.fit_codebook(of, scores, out, config, max_seconds=SECONDS)
        found[f"{name}_codebook"] = str(out)
    return tokenize.Models(**found)


def make_job(scores, out, **overrides):
    small = dict(splits=("train",), num_shards=3, max_seconds=SECONDS)
    return tokenize.Job(dataset=str(scores), out=str(out), **{**small, **overrides})


@pytest.fixture(scope="module")
def tokenizer(models):
    return tokenize.load(models)


def write(tokenizer, job):
    tokenize.write(tokenizer, job, tokenize.open_splits(job))


@pytest.fixture(scope="module")
def written(tokenizer, scores, tmp_path_factory):
    """Tokens of all models, written in one go."""
    out = tmp_path_factory.mktemp("tokens") / "all"
    write(tokenizer, make_job(scores, out, renders=2))
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_streams_have_the_lengths_that_their_rates_say(written, scores, models):
    source = tokens.open_tokens(written, "train")
    records = open_records(scores, "train")
    assert len(source) == 2 * len(records)
    about = manifest.read(written)
    assert set(about["parents"]) == {
        "codec", "semantic", "semantic_codebook", "joint", "joint_codebook", "melody",
        "melody_codebook",
    }  # fmt: skip
    for index in range(len(source)):
        piece = source[index]
        assert len(piece["acoustic"]) == pytest.approx(50 * SECONDS, abs=1)
        assert len(piece["semantic"]) == pytest.approx(25 * SECONDS, abs=1)
        assert piece["acoustic"].max() < about["streams"]["acoustic"]["codebook_size"]
        assert piece["semantic"].shape[1] == 1 and piece["semantic"].max() < 16
        # Windows of 1 s, one every second, and one every three.
        assert piece["joint"].shape[1] == 3 and piece["melody"].shape[1] == 2
        assert len(piece["joint"]) == pytest.approx(4, abs=1) and len(piece["melody"]) == 2
        for name in ("joint", "melody"):
            book = Codebook.load(getattr(models, f"{name}_codebook"))
            np.testing.assert_array_equal(book.encode(piece[f"{name}_embedding"]), piece[name])
    streams = about["streams"]
    assert streams["melody"]["frame_rate"] == 1 / HOP and streams["joint"]["frame_rate"] == 1
    assert streams["melody"]["codebooks"] == 2 and streams["melody"]["codebook_size"] == 8


def test_audio_of_a_piece_can_be_made_again_from_the_manifest(written, scores, models):
    about = manifest.read(written)
    records = {r.id: r for r in (open_records(scores, "train")[i] for i in range(3))}
    source = tokens.open_tokens(written, "train")
    codec, _ = chain.load_codec(models.codec)
    shape = about["streams"]["acoustic"]
    compared = 0
    for index in range(len(source)):
        name, _, seed = source[index]["id"].rpartition("/")
        if name in records:
            config = RenderConfig(**about["render"])
            mix, _ = mixes.whole_mix(records[name], config, int(seed), about["max_seconds"])
            audio = mixes.converted(
                mix, config.sample_rate, shape["sample_rate"], shape["channels"]
            )
            codes = codec.encode_long(audio[None])[0]
            np.testing.assert_array_equal(codes, source[index]["acoustic"][: len(codes)])
            compared += 1
    assert compared == 6


@pytest.fixture(scope="module")
def stem_tokens(models, scores, tmp_path_factory):
    """Tokens of the stems of three pieces or more."""
    out = tmp_path_factory.mktemp("tokens") / "stems"
    tokenize.tokenize(tokenize.Models(codec=models.codec), make_job(scores, out, stems=True))
    return out


def test_stems_stand_beside_a_mix_of_others(stem_tokens, scores, models):
    about, source = manifest.read(stem_tokens), tokens.open_tokens(stem_tokens, "train")
    records = {r.id: r for r in map(open_records(scores, "train").__getitem__, range(3))}
    codec, _ = chain.load_codec(models.codec)
    player = RenderConfig(**about["render"])

    def codes(audio):
        return codec.encode_long(tokenize.Acoustic(codec, "").blocks(audio))[0]

    seen = {}
    for index in range(len(source)):
        piece = source[index]
        name, _, seed = piece["id"].rpartition("/")
        name, _, slot = name.rpartition(":")
        if name not in records:
            continue
        stems, _ = mixes.whole_stems(records[name], player, int(seed), SECONDS)
        stem = int(piece["category"].item())
        assert records[name].stem_names[stem] == slot == about["streams"]["category"]["names"][stem]
        np.testing.assert_array_equal(codes(stems[stem]), piece["acoustic"])
        # Some of the others, and never the stem itself.
        others = [s for s in np.flatnonzero(records[name].stem_mask) if s != stem]
        subsets = (
            list(some)
            for size in range(1, len(others) + 1)
            for some in itertools.combinations(others, size)
        )
        assert any(np.array_equal(codes(stems[s].sum(0)), piece["context"]) for s in subsets)
        seen.setdefault(name, []).append(stem)
    assert seen.keys() == records.keys()
    for name, found in seen.items():
        assert sorted(found) == np.flatnonzero(records[name].stem_mask).tolist()


def test_a_model_of_another_version_is_refused(models, tmp_path):
    shutil.copytree(models.codec, tmp_path / "codec")
    about = manifest.read(tmp_path / "codec")
    del about["config"]["model"]
    manifest.write(tmp_path / "codec", about)
    with pytest.raises(UserError, match=r"config does not fit this version of mgen .*model"):
        chain.load_codec(tmp_path / "codec")


def test_stems_need_a_codec(models, scores, tmp_path):
    job = make_job(scores, tmp_path / "stems", stems=True)
    own = tokenize.Models(semantic=models.semantic, semantic_codebook=models.semantic_codebook)
    with pytest.raises(UserError, match="--stems: expected --codec"):
        tokenize.tokenize(own, job)
    assert not (tmp_path / "stems").exists()


def test_style_is_semantic_tokens_at_another_rate(models, scores, tmp_path):
    of = features.of_encoder(models.semantic, 1, rate=5.0)
    config = dataclasses.replace(SMALL, levels=2, size=8)
    features.fit_codebook(of, scores, tmp_path / "book", config, max_seconds=SECONDS)
    own = dict(style=models.semantic, style_codebook=str(tmp_path / "book"), codec=models.codec)
    tokenize.tokenize(tokenize.Models(**own), make_job(scores, tmp_path / "out", num_shards=1))
    about, piece = manifest.read(tmp_path / "out"), tokens.open_tokens(tmp_path / "out", "train")[0]
    assert about["streams"]["style"]["frame_rate"] == 5.0
    assert set(about["parents"]) == {"codec", "style", "style_codebook"}
    assert len(piece["style"]) == pytest.approx(5 * SECONDS, abs=1) and piece["style"].max() < 8
    assert piece["style"].shape[1] == 2


class Words:
    """Stands for a T5 release: a vector (word number, length) for each word."""

    width, fingerprint = 2, "words"

    def __init__(self):
        self.heard = []

    def __call__(self, texts):
        (text,) = texts
        self.heard.append(text)
        rows = [(i, len(word)) for i, word in enumerate(text.split())]
        vectors, mask = np.zeros((1, 64, 2), np.float32), np.zeros((1, 64), bool)
        vectors[0, : len(rows)], mask[0, : len(rows)] = rows, True
        return vectors, mask


def test_a_description_becomes_vectors(tokenizer, scores, tmp_path):
    words = Words()
    own = tokenize.Tokenizer(tokenizer.stages[:1], {}, words)
    write(own, make_job(scores, tmp_path))
    about, source = manifest.read(tmp_path), tokens.open_tokens(tmp_path, "train")
    assert about["streams"]["text"] == {"frame_rate": 0.0, "width": 2}
    assert about["parents"]["text_encoder"] == "words"
    assert len(set(words.heard)) > 1 and len(words.heard) == len(source)
    lengths = [[len(word) for word in text.split()] for text in words.heard]
    assert all(source[i]["text"][:, 1].tolist() in lengths for i in range(len(source)))
    # A crop has the whole text, filled up.
    config = pipeline.default_config(
        dataset=str(tmp_path), view="streams", streams=("acoustic", "text"), text_length=40,
        seconds=1.0, batch_size=2, eval_split="train",
    )  # fmt: skip
    batch = next(pipeline.make_iterator(config, split="train", seed=0, train=True))
    assert batch["text"].shape == (2, 40, 2) and batch["acoustic"].shape == (2, 50, 4)
    for vectors, mask in zip(batch["text"], batch["text_mask"]):
        assert vectors[mask][:, 1].tolist() in lengths and not vectors[~mask].any()


def test_one_pass_equals_one_model_at_a_time(written, models, scores, tmp_path):
    empty = dict.fromkeys(vars(models), "")
    together = tokens.open_tokens(written, "train")
    for name in ("codec", "semantic", "melody"):
        own = {f: getattr(models, f) for f in empty if f.startswith(name)}
        out = tmp_path / name
        tokenize.tokenize(tokenize.Models(**{**empty, **own}), make_job(scores, out, renders=2))
        alone = tokens.open_tokens(out, "train")
        stream = {"codec": "acoustic"}.get(name, name)
        assert set(alone.frames) - {"melody_embedding"} == {stream}
        for index in range(len(alone)):
            np.testing.assert_array_equal(alone[index][stream], together[index][stream])


def test_chroma_is_written_beside_codes_and_read_in_training(models, scores, tmp_path):
    own = tokenize.Models(codec=models.codec, chroma=True)
    tokenize.tokenize(own, make_job(scores, tmp_path, num_shards=1))
    about = manifest.read(tmp_path)
    assert about["streams"]["chroma"] == {"sample_rate": 32000, "frame_rate": 7.8125, "width": 12}
    piece, record = tokens.open_tokens(tmp_path, "train")[0], open_records(scores, "train")[0]
    config = RenderConfig(**about["render"])
    mix, _ = mixes.whole_mix(record, config, 0, SECONDS)
    audio = mixes.converted(mix, config.sample_rate, 32000, 1)[:, 0]
    assert piece["chroma"].dtype == np.float32 and piece["id"] == f"{record.id}/0"
    np.testing.assert_array_equal(piece["chroma"], chroma.dominant(audio))
    config = importlib.import_module("configs.hierarchy.tiny_musicgen_melody").get_config("smoke")
    config.unlock()
    config.stage.front, config.model.front = ("chroma",), (12,)
    config.model.attribute_sizes = attributes.sizes()
    config.streams.acoustic.codebook_size = about["streams"]["acoustic"]["codebook_size"]
    config.data.update(dataset=str(tmp_path), streams=("acoustic", "chroma"))
    task = checkpoint.make_task(config)
    tokens.open_tokens(tmp_path, "train", task.requires())
    batch = next(pipeline.make_iterator(config.data, split="train", seed=0, train=True))
    expected = {name: (x.shape, x.dtype) for name, x in task.batch_spec(2).items()}
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == expected


def test_workers_on_disjoint_shards_write_the_same_files(tokenizer, written, scores, tmp_path):
    for index in (1, 0):
        write(
            tokenizer,
            make_job(scores, tmp_path, renders=2, shard_count=2, shard_index=index),
        )
    assert contents(tmp_path) == contents(written)
    # Nothing is left to do.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tfrecord*")}
    write(tokenizer, make_job(scores, tmp_path, renders=2))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tfrecord*")}


@pytest.mark.slow
def test_killed_half_way_and_restarted_gives_identical_files(models, scores, tmp_path, mgen):
    command = [
        "tokenize", f"--dataset={scores}", "--splits=train,test", f"--max_seconds={SECONDS}",
        "--num_shards=3", *(f"--{name}={value}" for name, value in vars(models).items()),
    ]  # fmt: skip
    printed = mgen(*command, f"--out={tmp_path / 'whole'}").stdout
    assert "x real time" in printed and "semantic" in printed
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "mgen.cli", *command, f"--out={out}"])
    deadline = time.monotonic() + 300
    while not list(out.glob("train.tfrecord-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished before it was killed"
    assert 1 <= len(list(out.glob("*.tfrecord-*"))) < 6
    assert not (out / tokens.COMPLETED).exists()
    mgen(*command, f"--out={out}")
    left = {name: data for name, data in contents(out).items() if not name.startswith(".")}
    assert left == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="needs the extra `scale`"
)
def test_beam_writes_the_same_files(models, written, scores, tmp_path):
    job = make_job(scores, tmp_path, renders=2)
    report = tokenize_beam.run(models, job, "DirectRunner", "--direct_num_workers=1")
    assert contents(tmp_path) == contents(written)
    assert float(report.splitlines()[-1].split()[1]) > 0
    with pytest.raises(UserError, match="NoRunner: not a runner of Beam"):
        tokenize_beam.run(models, job, "NoRunner")
    with pytest.raises(UserError, match="shard_count is 2"):
        tokenize_beam.run(models, dataclasses.replace(job, shard_count=2), "DirectRunner")


def test_what_was_made_otherwise_is_refused_by_name(
    tokenizer, written, models, scores, tmp_path_factory
):
    job = make_job(scores, written, renders=2)
    other = untrained("codec", tmp_path_factory.mktemp("other") / "codec", seed=1)
    loaded = tokenize.load(dataclasses.replace(models, codec=other))
    with pytest.raises(UserError, match=r"parents\.codec is '\w+', expected"):
        write(loaded, job)
    with pytest.raises(UserError, match=r"renders is 2, expected 1"):
        write(tokenizer, dataclasses.replace(job, renders=1))
    with pytest.raises(UserError, match="cut into 3 shards, expected 4"):
        write(tokenizer, dataclasses.replace(job, num_shards=4))
    only = tokenize.Tokenizer(tokenizer.stages[:1], {})
    with pytest.raises(UserError, match=r"has .*(joint|semantic|melody).*expected none"):
        write(only, job)
    about = manifest.read(written)
    text = json.dumps(about)
    for field, value, words in (
        ("streams", "sample_rate", r"streams\.acoustic\.sample_rate is 8000, expected 16000"),
        ("render", "reverb", r"render\.reverb is 8000, expected True"),
        ("dataset", "fingerprint", r"dataset\.fingerprint is 8000"),
    ):
        broken = json.loads(text)
        part = broken[field]["acoustic"] if field == "streams" else broken[field]
        part[value] = 8000
        manifest.write(written, broken)
        with pytest.raises(UserError, match=words):
            write(tokenizer, job)
    manifest.write(written, about)


def test_models_that_do_not_belong_together(models, tmp_path):
    swap = dataclasses.replace(models, semantic_codebook=models.joint_codebook)
    with pytest.raises(UserError, match=r"joint_codebook: was fitted on encoder \w{12}, "):
        tokenize.load(swap)
    with pytest.raises(UserError, match="--joint and --joint_codebook: expected both"):
        tokenize.load(dataclasses.replace(models, joint_codebook=""))
    with pytest.raises(UserError, match="--melody and --melody_codebook: expected both"):
        tokenize.load(dataclasses.replace(models, melody=""))
    with pytest.raises(UserError, match="no model given"):
        tokenize.load(tokenize.Models())
    with pytest.raises(UserError, match="family is 'semantic', expected 'joint'"):
        tokenize.load(dataclasses.replace(models, joint=models.semantic))
    shutil.copytree(models.joint_codebook, tmp_path / "book")
    path = tmp_path / "book" / "codebook.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable codebook"):
        tokenize.load(dataclasses.replace(models, joint_codebook=str(tmp_path / "book")))


def test_codebook_is_left_alone_or_refused(models, scores):
    before = contents_of = manifest.read(models.semantic_codebook)
    of = features.of_encoder(models.semantic, 1)
    book = features.fit_codebook(of, scores, models.semantic_codebook, SMALL, max_seconds=SECONDS)
    assert book.about == before == contents_of
    assert book.about["frame_rate"] == 25.0 and book.vectors.shape[:2] == (1, 16)
    with pytest.raises(UserError, match=r"kmeans\.size is 16, expected 8"):
        smaller = dataclasses.replace(SMALL, size=8)
        features.fit_codebook(of, scores, models.semantic_codebook, smaller, max_seconds=SECONDS)
    with pytest.raises(UserError, match="layer is 1, expected 2"):
        of = features.of_encoder(models.semantic, 2)
        features.fit_codebook(of, scores, models.semantic_codebook, SMALL, max_seconds=SECONDS)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("mel", "", "", None), "expected --config"),
        (("mel", "", "out/semantic", None), "either --encoder or --features=mel"),
        (("mel", "codec.tiny_16khz", "", None), "family is 'codec', expected 'semantic'"),
        (("mel", "semantic.tiny_w2vbert", "", None), "random_projection', expected 'mel_rvq'"),
        (("encoder", "", "joint", 3), "layer=3: .* has no layers"),
        (("encoder", "", "semantic", None), "expected --layer"),
        (("encoder", "", "semantic", 99), "layer=99: expected 0 to"),
        (("encoder", "", "semantic_codebook", 1), "family is None"),
    ],
)
def test_features_that_cannot_be(models, flags, words):
    kind, config, encoder, layer = flags
    loaded = importlib.import_module(f"configs.{config}").get_config("smoke") if config else None
    with pytest.raises(UserError, match=words):
        features.choose(kind, loaded, getattr(models, encoder, encoder), layer, 25.0)


def test_codebook_of_mel_patches_serves_an_encoder(scores, tmp_path):
    from mgen.semantic import targets
    from mgen.semantic.config import SemanticConfig, TargetConfig

    config = importlib.import_module("configs.semantic.tiny_muq").get_config("smoke")
    shape = dataclasses.replace(
        SMALL, levels=config.targets.codebooks, size=config.targets.codebook_size
    )
    out = tmp_path / "mel"
    features.fit_codebook(features.of_mel(config), scores, out, shape, max_seconds=20.0)
    assert sorted(path.name for path in out.iterdir()) == [
        "codebook.safetensors", "manifest.json"
    ]  # fmt: skip
    config.targets.codebook = str(out)
    model = SemanticConfig.from_config(config.model)
    loaded = targets.load_codebook(model, TargetConfig.from_config(config.targets))
    np.testing.assert_array_equal(loaded, Codebook.load(out).vectors)
    errors = Codebook.load(out).about["errors"]
    assert errors == sorted(errors, reverse=True)
