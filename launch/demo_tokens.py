"""What language models stand on, in minutes: joint embedding, semantic encoder, tokens. Resumes.

  mgen demo_tokens --out=out/chain      # what `make demo-tokens` runs
  mgen demo_tokens --out=/tmp/t --smoke  # seconds a stage, noise: everything works

Trained models and tokens go to --out/work, the table of what the encoders hear in held-out pieces,
beside chance and raw log-mel, to --out/tokens/report.json.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_OUT = flags.DEFINE_string("out", "out/chain", "Folder of the results.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Smallest sizes.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, recipes

    work = clips.make_folder(_OUT.value) / "work"
    for command in recipes.tokens(work, _SMOKE.value):
        cli.stage(*command)


if __name__ == "__main__":
    cli.run(main)
