"""Look at a prepared dataset: a table, a page of spectrograms and piano rolls, a few WAV files.

mgen inspect_data --dataset=out/data/corpus_scores/band/1.0.0 --out=out/inspect

Hours, pieces and licences are of the whole dataset; loudness, silence and notes are measured on one
crop of up to --records records of each split.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_DATASET = flags.DEFINE_string("dataset", None, "Folder that prepare_data printed.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for page.png and WAV files.", required=True)
_RECORDS = flags.DEFINE_integer("records", 100, "Records of each split to measure.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of the crops.")
_SAMPLE_RATE = flags.DEFINE_integer("sample_rate", 22050, "Hz of the crops.")
_EXAMPLES = flags.DEFINE_integer("examples", 3, "Pieces on the page and to listen to.")
_SPLITS = flags.DEFINE_list("splits", [], "Splits to look at; all by default.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the renderer (scores).")


def main(argv: list[str]) -> None:
    del argv
    from mgen.inputs import inspect

    options = inspect.Options(
        records=_RECORDS.value,
        seconds=_SECONDS.value,
        sample_rate=_SAMPLE_RATE.value,
        examples=_EXAMPLES.value,
        seed=_SEED.value,
        splits=tuple(_SPLITS.value),
    )
    inspect.inspect(_DATASET.value, _OUT.value, options)


if __name__ == "__main__":
    cli.run(main)
