"""The whole path in minutes: scores -> codec -> tokens -> language model -> music. Resumes.

  mgen demo --out=out/demo           # what `make demo` runs: 200 pieces, minutes on 2 cores
  mgen demo --out=/tmp/demo --smoke  # seconds a stage, noise: everything works

Clips (WAV, picture, codes, JSON) and report.json go to --out, everything else to --out/work.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_OUT = flags.DEFINE_string("out", "out/demo", "Folder of the clips and of report.json.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Smallest sizes.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, report

    stage = cli.stage
    out = clips.make_folder(_OUT.value)
    work, smoke = out / "work", _SMOKE.value
    size, pieces, seconds = (":smoke", 12, 1) if smoke else ("", 200, 6)
    stage("prepare_data", "--dataset=corpus_scores/band", f"--limit={pieces}", f"--out={work}")
    data = next((work / "corpus_scores" / "band").glob("*"))
    codec, tokens, lm = (work / name for name in ("codec", "tokens", "lm"))
    train = [f"--config=codec/tiny_16khz{size}", f"--workdir={codec}"]
    stage("train", *train, f"--config.data.dataset={data}")
    stage("tokenize", f"--codec={codec}", f"--dataset={data}", f"--out={tokens}")
    train = [f"--config=hierarchy/tiny_musicgen{size}", f"--workdir={lm}"]
    stage("train", *train, f"--config.data.dataset={tokens}")
    models = [f"--lm={lm}", f"--codec={codec}"]
    stage("generate", *models, "--n=3", "--seed=1", f"--duration={seconds}", f"--out={out}")
    for workdir in (codec, lm):
        stage("evaluate", f"--workdir={workdir}", f"--out={work / 'report' / workdir.name}")
    report.demo(out, work / "report" / "codec", work / "report" / "lm")


if __name__ == "__main__":
    cli.run(main)
