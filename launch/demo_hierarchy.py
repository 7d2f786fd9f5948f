"""The MusicLM chain in small: text to semantic to coarse to fine tokens to audio. Resumes.

  mgen demo_hierarchy --out=out/chain   # what `make demo-hierarchy` runs
  mgen demo_hierarchy --out=/tmp/h --smoke       # seconds a stage, noise: everything works

First what `mgen demo_tokens` does; then every language model, clips from text, from the start of a
held-out piece and from a story, and the table of --out/hierarchy/report.json: each model's loss
on held-out pieces beside its unigram loss and its loss without the condition, and how clips fit
their own prompts and those of others.
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
    from mgen import clips, recipes, report

    out = clips.make_folder(_OUT.value)
    for recipe in (recipes.tokens, recipes.hierarchy):
        for command in recipe(out / "work", _SMOKE.value):
            cli.stage(*command)
    report.hierarchy(out / "hierarchy", list(recipes.STAGES))


if __name__ == "__main__":
    cli.run(main)
