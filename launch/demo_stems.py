"""One model over stems in small: generates, fills in, separates; and what it is compared with.
Resumes.

  mgen demo_stems --out=out/stems           # what `make demo-stems` runs
  mgen demo_stems --out=/tmp/s --smoke      # seconds a stage, noise: everything works

Trained models go to --out/work; clips, pictures and the table of --out/scores/report.json: SI-SDRi
on held-out pieces of the joint model, of independent ones, of a separator trained by regression,
and distances of what is imputed and generated.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_OUT = flags.DEFINE_string("out", "out/stems", "Folder of the results.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Smallest sizes.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, recipes

    out = clips.make_folder(_OUT.value)
    for command in recipes.stems(out / "work", _SMOKE.value):
        cli.stage(*command)


if __name__ == "__main__":
    cli.run(main)
