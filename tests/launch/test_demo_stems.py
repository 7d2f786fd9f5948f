"""The path from scores to models over stems and what they do, at smoke size, through the real
commands, in one process."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mgen import recipes

METHODS = ("dirac", "gaussian", "independent", "regression")


@pytest.fixture(scope="module")
def demo(here, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo_stems") / "out"
    done = here("demo_stems", "--smoke", f"--out={out}")
    return out, done.stdout


@pytest.mark.slow
def test_report_has_every_way_to_take_a_mix_apart_and_what_is_imputed_and_made(demo):
    out, printed = demo
    report = json.loads((out / "scores" / "report.json").read_text())
    expected = {f"{name}/mean" for name in ("mix", *METHODS)} | {"generated"}
    expected |= {f"{way}/{name}" for way in ("imputed", "missing") for name in recipes.STEMS}
    assert expected <= report.keys() and all(map(np.isfinite, report.values()))
    assert "SI-SDRi" in printed and "95% from" in printed


@pytest.mark.slow
def test_stems_of_a_dirac_separation_sum_to_the_mix_of_the_held_out_ones(demo):
    scores = demo[0] / "scores"
    kinds = ("held_out", *METHODS, *(f"imputed_{name}" for name in recipes.STEMS), "generated")
    for kind in kinds:
        assert (scores / kind / "0.png").stat().st_size > 1000
        for name in (*recipes.STEMS, "mix"):
            audio, rate = soundfile.read(scores / kind / f"0_{name}.wav")
            assert rate == 16000 and len(audio) == 8000 and np.isfinite(audio).all()
    mixes = [soundfile.read(scores / kind / "0_mix.wav")[0] for kind in ("held_out", "dirac")]
    # Two files of 16 bits.
    np.testing.assert_allclose(*mixes, atol=2e-4)


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_keeps_the_scores(demo, here):
    out, _ = demo
    before = (out / "scores" / "report.json").stat().st_mtime_ns
    here("demo_stems", "--smoke", f"--out={out}")
    assert (out / "scores" / "report.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_other_stems_are_refused(demo, here, tmp_path):
    work = demo[0] / "work"
    common = [f"--dataset={work / 'corpus_scores' / 'band'}", f"--out={tmp_path / 'out'}"]
    joint = f"--joint={work / 'joint'}"
    for flags, word in (
        ([joint, f"--independent={work / 'bass'},{work / 'drums'}"], "--independent"),
        ([joint, f"--separator={work / 'joint'}"], "separator"),
        ([f"--joint={work / 'separator'}"], "draws no stems"),
        ([joint, "--split=none"], "none"),
    ):
        done = here("score_stems", *common, *flags, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(lines) == 1 and word in lines[0], done.stderr


@pytest.mark.slow
def test_notebook_runs(demo, run_notebook, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stems").symlink_to(demo[0])
    run_notebook(Path(__file__).parents[2] / "colab" / "stems.ipynb")
    made = {path.stem for path in (tmp_path / "out" / "stems_notebook").glob("*.wav")}
    ways = {"generated", "held_out", "arranged", "inpainted", "extended"}
    assert made == ways | set(METHODS)
