"""Vocabularies: what is trained reads back, ids stand where they should, captions fit the crop."""

import re
import subprocess
import sys

import numpy as np
import pytest

from mgen.errors import UserError
from mgen.inputs import captions, pipeline, render, vocabulary
from mgen.inputs.records import open_records


@pytest.fixture(scope="session")
def trained(scores, tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "captions.model"
    texts = vocabulary.caption_stream(open_records(scores, "train"), 300)
    return vocabulary.train(texts, 120, path)


def test_text_comes_back_and_ids_are_framed(trained):
    text = "a lively trio in g major, in 4/4 time"
    ids, mask = trained.encode([text, text + ", " + text, ""], 24)
    assert trained.size == 120 and ids.dtype == np.int32
    assert trained.decode(ids[0][mask[0]]) == text
    for row, there in zip(ids, mask):
        count = int(there.sum())
        assert there[:count].all() and not there[count:].any()
        assert row[0] == vocabulary.BOS and row[count - 1] == vocabulary.EOS
        assert (row[count:] == vocabulary.PAD).all()
    assert mask[1].all()  # cut, with its end


def test_training_is_deterministic(trained, scores, tmp_path):
    texts = vocabulary.caption_stream(open_records(scores, "train"), 300)
    again = vocabulary.train(texts, 120, tmp_path / "again.model")
    assert again.fingerprint == trained.fingerprint


def test_bad_files_and_sizes_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="no file"):
        vocabulary.Vocabulary(tmp_path / "none.model")
    broken = tmp_path / "broken.model"
    broken.write_bytes(trained.path.read_bytes()[:100])
    with pytest.raises(UserError, match="not a SentencePiece"):
        vocabulary.Vocabulary(broken)
    for texts in ([], ["abcdefghijklmnopqrstuvwxyz"]):
        with pytest.raises(UserError, match="vocabulary of 12 pieces"):
            vocabulary.train(texts, 12, tmp_path / "none.model")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.model"]


def test_performed_record_is_transposed_and_stretched(make_score):
    record = make_score(1)
    config = render.RenderConfig(instruments="free", transpose=(2, 2), tempo=(1.25, 1.25))
    performance = render.perform(record, seed=3, config=config)
    played = render.performed(record, performance)
    assert record.key == "G major" and played.key == "A major"
    assert played.chords[0] == "A:maj"
    np.testing.assert_allclose(played.tempi, [[0, 150]])
    np.testing.assert_allclose(played.metres, [[0, 4, 4]])
    np.testing.assert_allclose(played.beats, record.beats / 1.25)
    assert played.duration == pytest.approx(record.duration / 1.25)
    np.testing.assert_array_equal(played.programs, performance.programs)


def test_caption_names_the_instruments_that_sound(scores, trained):
    config = pipeline.default_config(
        dataset=str(scores),
        view="audio_text",
        vocabulary=str(trained.path),
        text_length=96,
        batch_size=5,
        seconds=1.0,
        stem_dropout=0.6,
        render={**pipeline.default_config().render.to_dict(), "instruments": "free"},
    )
    options = dict(split="train", seed=1)
    batch = next(pipeline.make_iterator(config, train=True, **options))
    assert batch["audio"].shape == (5, 16000, 1) and batch["text"].shape == (5, 96)
    assert batch["text_mask"].dtype == bool
    builder = pipeline._builder(config, pipeline._open(config, "train"), 1, True)
    for index in range(8):
        rng = np.random.default_rng(index)
        crop = builder.augment(builder.crop(builder.sources[0][index], rng), rng)
        caption = builder.caption(crop, 5)
        silent = [
            captions.program_name(int(program))
            for program, there in zip(crop.programs, crop.mask)
            if not there
        ]
        sounding = {
            captions.program_name(int(program))
            for program, there in zip(crop.programs, crop.mask)
            if there
        }
        for name in set(silent) - sounding:
            assert not re.search(rf"\b{re.escape(name)}\b", caption.lower()), caption


def test_script_writes_a_vocabulary(scores, tmp_path):
    out = tmp_path / "v.model"
    command = [sys.executable, "-m", "mgen.cli", "train_vocabulary", f"--dataset={scores}"]
    done = subprocess.run(
        [*command, f"--out={out}", "--size=90", "--captions=200"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert vocabulary.Vocabulary(out).size == 90
    done = subprocess.run([*command, f"--out={tmp_path / 'w.txt'}"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("error:") == 1 and "model" in done.stderr
