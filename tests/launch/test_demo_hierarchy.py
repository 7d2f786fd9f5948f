"""The path from scores to tokens of all three models, and from text through the language models to
audio, at smoke size, through the real commands, in one process (`test_demo.py` starts one each)."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import soundfile

from mgen import manifest, recipes
from mgen.inputs import tokens


@pytest.fixture(scope="module")
def demo(here, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo_hierarchy") / "out"
    # Begins with what `demo_tokens` does.
    done = here("demo_hierarchy", "--smoke", f"--out={out}")
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
    assert set(about["streams"]) == {"acoustic", "semantic", "joint", "chroma"}
    for name in ("codec", "joint", "semantic", "joint_codebook", "semantic_codebook"):
        made_by = manifest.read(out / "work" / name)
        assert about["parents"][name] == made_by.get("fingerprint", about["parents"][name])
    piece = tokens.open_tokens(folder, "train")[0]
    seconds = len(piece["semantic"]) / about["streams"]["semantic"]["frame_rate"]
    acoustic = about["streams"]["acoustic"]
    assert len(piece["acoustic"]) == pytest.approx(seconds * acoustic["frame_rate"], abs=3)
    assert piece["joint"].shape[1] == about["streams"]["joint"]["codebooks"] == 2
    assert len(piece["joint"]) == len(piece["joint_embedding"])


@pytest.mark.slow
def test_probe_refuses_what_does_not_fit(demo, here):
    out, _ = demo
    work = out / "work"
    data = f"--dataset={work / 'corpus_scores' / 'band'}"
    for flags, word in (
        ([], "nothing to probe"),
        ([f"--semantic={work / 'semantic'}"], "--codebook"),
        ([f"--joint={work / 'codec'}"], "joint"),
        ([f"--joint={work / 'joint'}", "--split=none"], "none"),
    ):
        done = here("probe", data, *flags, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(lines) == 1 and word in lines[0], done.stderr


@pytest.mark.slow
def test_every_chain_makes_clips_and_is_scored(demo):
    out, printed = demo
    made = out / "hierarchy"
    for name in ("musiclm", "soundstorm", "depth", "story", "continued", "melody", "stemgen"):
        clip = made / name / "seed0.wav"
        audio, rate = soundfile.read(clip)
        assert rate == 16000 and len(audio) == 2 * rate and np.isfinite(audio).all()
        about = json.loads(clip.with_suffix(".json").read_text())
        assert about["models"].keys() >= {"codec", "joint", "lm_0"}
    codes = [
        safetensors.numpy.load_file(made / name / "seed0.safetensors")["codes"]
        for name in ("musiclm", "story", "continued")
    ]
    # The story is told something else from the second second on, the continuation has a prompt.
    np.testing.assert_array_equal(codes[0][:25], codes[1][:25])
    assert not np.array_equal(codes[0], codes[1]) and not np.array_equal(codes[0], codes[2])
    report = json.loads((made / "report.json").read_text())
    mix, _ = soundfile.read(made / "stemgen" / "seed0_mix.wav")
    assert len(mix) == 2 * 16000
    for stage in recipes.STAGES:
        for field in ("cross_entropy", "cross_entropy_alone", "unigram_cross_entropy"):
            assert np.isfinite(report[f"{stage}/{field}"])
    assert "musiclm/difference" in report and "soundstorm/prompted" in printed


@pytest.mark.slow
def test_generate_refuses_what_these_models_cannot_follow(demo, here, tmp_path):
    out, _ = demo
    work = out / "work"
    lms = f"--lm={work / 'semantic_lm'},{work / 'coarse_lm'},{work / 'fine_lm'}"
    common = ("generate", f"--codec={work / 'codec'}", f"--out={tmp_path / 'clips'}", lms)
    joint = f"--joint={work / 'joint'}"
    wav = next((out / "hierarchy" / "musiclm").glob("*.wav"))
    for flags, word in (
        (["--prompt=a waltz"], "--joint"),
        ([joint, "--prompt=a waltz", f"--style={wav}"], "expected one of them"),
        ([joint, "--story=soon: a waltz"], "SECOND:PROMPT"),
        ([joint, "--best_of=2"], "--prompt"),
        ([joint, "--temperature=1,2"], "2 numbers"),
        ([joint, f"--audio_prompt={wav}"], "--semantic"),
        ([f"--joint={work / 'codec'}"], "joint"),
        ([f"--melody={wav}"], "without melodies"),
        ([joint, "--negative=drums", "--guidance=1"], "--guidance"),
        ([f"--audio_prompt={wav}", "--start=0.5", "--end=1"], "from left to right"),
    ):
        done = here(*common, *flags, check=False)
        assert done.returncode == 1 and done.stderr.startswith("error:"), done.stderr
        assert word in done.stderr, (flags, done.stderr)


@pytest.mark.slow
def test_notebook_generates(demo, run_notebook, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "chain").symlink_to(demo[0])
    run_notebook(Path(__file__).parents[2] / "colab" / "generate.ipynb")
    made = {path.stem: soundfile.read(path) for path in (tmp_path / "out/generate").glob("*.wav")}
    whole = {"text", "continued", "style", "story", "streamed", "melody", "bass", "mix"}
    infilled = {f"infilled_{name}" for name in ("middle", "every_eighth", "every_fourth")}
    assert made.keys() == whole | infilled
    (clip, rate), (continued, _) = made["infilled_middle"], made["continued"]
    assert len(continued) == len(clip) + 2 * rate
    assert all(len(made[name][0]) == 2 * rate for name in whole - {"continued"})
