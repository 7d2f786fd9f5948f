"""The memorisation audit of a smoke model over tokens in a folder, and of one that copies."""

import importlib
import json
import types

import jax
import numpy as np
import pytest

from mgen import audit, manifest
from mgen.errors import UserError
from mgen.inputs import attributes as attribute_fields
from mgen.inputs import tokens
from mgen.kmeans import Codebook
from mgen.train import checkpoint, loop

SIZE, RATE, FRAMES = 16, 25.0, 100
FIELDS = len(attribute_fields.NAMES)
OPTIONS = audit.Options(n=6, prompt_seconds=(0.0, 0.4, 1.0), seconds=1.0, batch=4)


def stream(size=SIZE, rate=RATE):
    return dict(codebooks=1, codebook_size=size, frame_rate=rate, sample_rate=16000)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "book"
    vectors = np.random.default_rng(0).normal(size=(1, SIZE, 5)).astype(np.float32)
    Codebook(vectors).save(folder)
    return folder


def parents(book):
    return {"semantic": "s" * 64, "semantic_codebook": Codebook.load(book).fingerprint}


@pytest.fixture(scope="module")
def dataset(book, tmp_path_factory):
    """Eight pieces a split, of semantic tokens."""
    folder = tmp_path_factory.mktemp("audit") / "tokens"
    about = {"streams": {"semantic": stream()}, "parents": parents(book), "kind": tokens.KIND}
    manifest.write(folder, about)
    for number, split in enumerate(("train", "test")):
        rng = np.random.default_rng(number)
        with tokens.ShardWriter(folder, split, 0, 1) as writer:
            for index in range(8):
                codes = rng.integers(0, SIZE, (FRAMES + index, 1)).astype(np.int32)
                writer.write(
                    id=f"{split}/{index}", attributes=np.zeros(FIELDS, int), semantic=codes
                )
    tokens.finish(folder, ("train", "test"), 1)
    return folder


@pytest.fixture(scope="module")
def lm(book, tmp_path_factory):
    """A workdir as `mgen train` leaves it after no step."""
    workdir = tmp_path_factory.mktemp("audit") / "lm"
    config = importlib.import_module("configs.hierarchy.tiny_musicgen").get_config("smoke")
    with config.unlocked():
        config.streams = {"semantic": stream()}
    config.stage.target = ("semantic",)
    config.data.streams = ("semantic",)
    task = checkpoint.make_task(config)
    loop.claim_workdir(workdir, task, config, parents(book), False)
    checkpoints = checkpoint.Checkpoints(workdir)
    state = jax.jit(task.init)(jax.random.key(0))
    checkpoints.save(0, state, types.SimpleNamespace(get_state=dict), config.to_dict())
    checkpoints.close()
    return workdir


def test_command_prints_a_table_and_writes_json(mgen, lm, dataset, book, tmp_path):
    flags = ["--prompt_seconds=0,1", "--seconds=1", "--n=4", "--batch=4"]
    printed = mgen(
        "audit", f"--lm={lm}", f"--tokens={dataset}", f"--codebook={book}", f"--out={tmp_path}",
        *flags,
    ).stdout.splitlines()  # fmt: skip
    assert printed[0].split()[2:] == [
        "exact", "verbatim", "approximate", "false_positives", "similarity"
    ]  # fmt: skip
    assert [line.split()[0] for line in printed[1:]] == ["0.00", "1.00"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frame_rate"] == RATE and report["flags"]["n"] == 4
    rows = report["rows"]
    assert [row["prompt"] for row in rows] == [0, 25] and rows[0]["frames"] == 25
    # Untrained: it knows nothing.
    assert all(row["exact"] == row["verbatim"] == row["approximate"] == 0 for row in rows)
    assert all(row["similarity"] < 0.85 for row in rows)
    bad = mgen("audit", f"--lm={lm}", f"--tokens={dataset}", f"--out={tmp_path}",
               "--prompt_seconds=1,x", check=False)  # fmt: skip
    assert bad.returncode == 1 and bad.stderr.startswith("error: --prompt_seconds=")


def test_a_model_that_copies_is_caught_on_its_training_data_only(lm, dataset, book, monkeypatch):
    """In place of the model, one that looks prompts up in the training split."""
    source = tokens.open_tokens(dataset, "train", streams=["semantic"])
    known = [source[i]["semantic"] for i in range(len(source))]

    class Copies:
        @staticmethod
        def from_trained(config, params, variables):
            return types.SimpleNamespace(lm=Copies())

        def generate(self, *, frames, seeds, prompt, condition, sampling):
            assert sampling.temperature == 0 and sampling.guidance == 1
            assert condition.attributes.shape == (len(seeds), FIELDS)
            rows = []
            for index in range(len(seeds)):
                wanted = known[0][:0] if prompt is None else prompt[index]
                rows.append(self.look_up(wanted, frames))
            return np.stack(rows)

        def look_up(self, wanted, frames):
            for codes in known:
                for start in range(len(codes) - frames + 1):
                    if np.array_equal(codes[start : start + len(wanted)], wanted):
                        return codes[start : start + frames]
            return np.concatenate([wanted, known[1]])[:frames]

    monkeypatch.setattr(audit, "FrozenStage", Copies)
    rows, rate = audit.audit(lm, dataset, book, OPTIONS)
    assert rate == RATE and [row["prompt"] for row in rows] == [0, 10, 25]
    for row in rows[1:]:
        assert row["exact"] == row["verbatim"] == row["approximate"] == 1
        assert row["false_positives"] == 0 and row["similarity"] == pytest.approx(1)
    assert rows[0]["exact"] < 0.5 and rows[0]["verbatim"] == 1
    held_out = audit.Options(**(vars(OPTIONS) | {"split": "test"}))
    for row in audit.audit(lm, dataset, "", held_out)[0]:
        assert row["exact"] == row["approximate"] == 0


def test_tokens_of_other_models_are_refused(lm, dataset, book, tmp_path):
    Codebook(Codebook.load(book).vectors + 1).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"parents\.semantic_codebook is '\w+', expected '\w+'"):
        audit.audit(lm, dataset, tmp_path / "other", OPTIONS)
    about = manifest.read(dataset)
    for part, value, words in (
        ("parents", {"semantic": "t" * 64}, r"parents\.semantic is 'ttt"),
        ("streams", {"semantic": stream(rate=50.0)}, r"semantic\.frame_rate is 50\.0, expected 25"),
    ):
        manifest.write(dataset, about | {part: about[part] | value})
        with pytest.raises(UserError, match=words):
            audit.audit(lm, dataset, book, OPTIONS)
    manifest.write(dataset, about)
    longer = audit.Options(**(vars(OPTIONS) | {"seconds": 9.0}))
    with pytest.raises(UserError, match="0 pieces have the 250 frames"):
        audit.audit(lm, dataset, book, longer)
    negative = audit.Options(**(vars(OPTIONS) | {"prompt_seconds": (-1.0,)}))
    with pytest.raises(UserError, match="expected seconds from 0 on"):
        audit.audit(lm, dataset, book, negative)


def test_a_stage_that_needs_more_than_a_prompt_is_refused():
    config = importlib.import_module("configs.hierarchy.tiny_musiclm").get_config("fine,smoke")
    with pytest.raises(UserError, match="writes acoustic from acoustic, expected a stage"):
        audit.target_stream(checkpoint.make_task(config).stage, "lm")
