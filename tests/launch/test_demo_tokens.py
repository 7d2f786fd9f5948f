"""The path from scores to tokens of all three models at smoke size, through the real commands."""

import json

import numpy as np
import pytest

from mgen import manifest
from mgen.inputs import tokens


@pytest.fixture(scope="module")
def demo(mgen, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo_tokens") / "out"
    done = mgen("demo_tokens", "--smoke", f"--out={out}")
    return out, done.stdout


@pytest.mark.slow
def test_report_holds_every_figure_beside_its_baseline(demo):
    out, printed = demo
    report = json.loads((out / "tokens" / "report.json").read_text())
    for name in (
        "text_to_audio/recall_at_1", "audio_to_text/recall_at_10", "metre", "mode", "instrument",
        "chord information", "instrument information", "beat information",
        "chord probe", "instrument probe", "key probe",
    ):  # fmt: skip
        assert all(np.isfinite(report[name][side]) for side in ("value", "baseline")), name
        assert name in printed


@pytest.mark.slow
def test_tokens_of_all_models_lie_side_by_side(demo):
    out, _ = demo
    folder = out / "work" / "all_tokens"
    about = manifest.read(folder)
    assert set(about["streams"]) == {"acoustic", "semantic", "joint"}
    for name in ("codec", "joint", "semantic", "joint_codebook", "semantic_codebook"):
        made_by = manifest.read(out / "work" / name)
        assert about["parents"][name] == made_by.get("fingerprint", about["parents"][name])
    piece = tokens.open_tokens(folder, "train")[0]
    seconds = len(piece["semantic"]) / about["streams"]["semantic"]["frame_rate"]
    acoustic = about["streams"]["acoustic"]
    assert len(piece["acoustic"]) == pytest.approx(seconds * acoustic["frame_rate"], abs=3)
    assert piece["joint"].shape[1] == about["streams"]["joint"]["codebooks"] == 12
    assert len(piece["joint"]) == len(piece["joint_embedding"])


@pytest.mark.slow
def test_probe_refuses_what_does_not_fit(demo, mgen):
    out, _ = demo
    work = out / "work"
    data = f"--dataset={work / 'corpus_scores' / 'band'}"
    for flags, word in (
        ([], "nothing to probe"),
        ([f"--semantic={work / 'semantic'}"], "--codebook"),
        ([f"--joint={work / 'codec'}"], "joint"),
        ([f"--joint={work / 'joint'}", "--split=none"], "none"),
    ):
        done = mgen("probe", data, *flags, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(lines) == 1 and word in lines[0], done.stderr
