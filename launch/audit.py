"""What a language model says by heart of its training data, by the length of the prompt.

mgen audit --lm=out/lm --tokens=out/tokens --codebook=out/semantic_codebook --out=out/audit

Of passages of the training split: exact continuations, ones that stand word for word anywhere in
the split, and approximate ones, beside their rate among unrelated passages; what the columns are is
told by mgen.metrics.memorization.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import json

from absl import flags

from mgen import cli

_LM = flags.DEFINE_string("lm", None, "Workdir of a trained language model.", required=True)
_TOKENS = flags.DEFINE_string("tokens", None, "Its token dataset.", required=True)
_CODEBOOK = flags.DEFINE_string("codebook", "", "Of the tokens; without one all are alike far.")
_OUT = flags.DEFINE_string("out", None, "Folder for report.json.", required=True)
_PROMPTS = flags.DEFINE_list("prompt_seconds", "0,1,2,5", "Lengths of the prompt.")
_OPTIONS = [
    flags.DEFINE_string("split", "train", "Split; a held-out one tells what is not memory."),
    flags.DEFINE_float("seconds", 5.0, "Length of the continuation.", 0.01),
    flags.DEFINE_integer("n", 256, "Passages, each of a piece of its own.", 2),
    flags.DEFINE_float("threshold", 0.85, "Similarity of an approximate match.", 0.0, 1.0),
    flags.DEFINE_float("temperature", 0.0, "Of the sampling; 0 is greedy.", 0.0),
    flags.DEFINE_integer("batch", 16, "Passages at once.", 1),
    flags.DEFINE_integer("seed", 0, "Of the choice of passages."),
]


def main(argv: list[str]) -> None:
    del argv
    from mgen import audit, clips
    from mgen.errors import UserError
    from mgen.metrics import memorization

    try:
        prompts = tuple(float(text) for text in _PROMPTS.value)
    except ValueError as error:
        raise UserError(f"--prompt_seconds={_PROMPTS.value}: expected numbers") from error
    folder = clips.make_folder(_OUT.value)
    given = {flag.name: flag.value for flag in _OPTIONS}
    options = audit.Options(prompt_seconds=prompts, **given)
    rows, rate = audit.audit(_LM.value, _TOKENS.value, _CODEBOOK.value, options)
    report = {"flags": cli.flag_values(main), "frame_rate": rate, "rows": rows}
    (folder / "report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    print(memorization.table(rows, rate))


if __name__ == "__main__":
    cli.run(main)
