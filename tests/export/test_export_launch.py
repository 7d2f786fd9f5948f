"""`mgen export` on workdirs: what it writes is what the models do; bad input is one line."""

from types import SimpleNamespace

import numpy as np
import pytest

from mgen import chain, manifest
from mgen.export import artefact
from mgen.inputs import vocabulary
from mgen.train import checkpoint, loop


def make_workdir(workdir, task, state, parents=None):
    """A workdir as `mgen train` leaves it after no step; returns the fingerprint."""
    task.files = lambda: {}
    loop.claim_workdir(workdir, task, task.config, parents or {}, False)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(0, state, SimpleNamespace(get_state=dict), task.config.to_dict())
    checkpoints.close()
    return checkpoint.load_trained(workdir).fingerprint


@pytest.fixture(scope="module")
def workdirs(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdirs")
    codec = make_workdir(folder / "codec", *untrained("codec.tiny_16khz"))
    make_workdir(folder / "joint", *untrained("joint.tiny_mulan"))
    texts = [f"a {speed} tune of {n} bars" for speed in ("slow", "fast") for n in range(50)]
    vocabulary.train(texts, 60, folder / "joint" / "vocabulary.model")
    make_workdir(folder / "lm", *untrained("hierarchy.tiny_musicgen"), {"codec": codec})
    make_workdir(folder / "other_lm", *untrained("hierarchy.tiny_musicgen"), {"codec": "another"})
    return {path.name: f"--{path.name}={path}" for path in folder.iterdir()}


def test_a_chain_is_exported_with_its_vocabulary_and_parents(mgen, workdirs, tmp_path):
    out = tmp_path / "out"
    given = (workdirs["codec"], workdirs["joint"], workdirs["lm"], f"--out={out}")
    done = mgen("export", *given, "--formats=jax_export", "--platforms=cpu,tpu", "--seconds=0.3")
    assert "generate(seed int32 [b], attributes int32 [b, 4]" in done.stdout
    about = manifest.read(out)
    trained = checkpoint.load_trained(workdirs["lm"].partition("=")[2])
    assert about["parents"]["lm_0"] == trained.fingerprint
    assert about["parents"]["codec"] == trained.manifest["parents"]["codec"]
    assert about["platforms"] == ["cpu", "tpu"] and about["models"]["lm_0"]["frames"] == 15
    assert about["models"]["lm_0"]["attributes"]["mode"] == ["unknown", "major", "minor"]
    trained = checkpoint.load_trained(workdirs["joint"].partition("=")[2])
    pieces = (trained.workdir / "vocabulary.model").read_bytes()
    assert (out / "vocabulary.model").read_bytes() == pieces
    functions = artefact.load(out)
    assert functions.keys() == {"encode", "decode", "embed_audio", "embed_text", "generate"}
    audio = np.zeros((2, 640, 1), np.float32)
    codec, _ = chain.load_codec(workdirs["codec"].partition("=")[2])
    codes = functions["encode"](audio=audio)["codes"]
    np.testing.assert_array_equal(codes, codec.encode(audio))


def test_bad_input_is_one_line_and_leaves_nothing(mgen, workdirs, tmp_path):
    def fails(*args, words):
        done = mgen("export", *args, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(lines) == 1, done.stderr
        assert "Traceback" not in done.stderr
        for word in words:
            assert word in lines[0], lines[0]

    out, codec = f"--out={tmp_path / 'out'}", workdirs["codec"]
    programs = "--formats=jax_export"
    fails(f"--codec={tmp_path / 'no'}", out, programs, words=["no", "manifest.json"])
    other = f"--lm={workdirs['other_lm'].partition('=')[2]}"
    fails(codec, other, out, programs, words=["another", "codec"])
    assert not list(tmp_path.iterdir())
