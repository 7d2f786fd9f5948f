"""Turn a dataset into codec tokens. Interrupted or on many machines: run it again, it fills in.

mgen tokenize --codec=out/codec --dataset=out/data --out=out/tokens
mgen tokenize --codec=out/codec --dataset=out/data --out=out/tokens --shard_index=3 --shard_count=8
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this file must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_CODEC = flags.DEFINE_string("codec", None, "Workdir of a trained codec.", required=True)
_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the token dataset.", required=True)
_SPLITS = flags.DEFINE_list("splits", "train,validation,test", "Splits to tokenize.")
_OPTIONS = [
    flags.DEFINE_integer("num_shards", 4, "Files a split.", 1),
    flags.DEFINE_integer("shard_index", 0, "This worker.", 0),
    flags.DEFINE_integer("shard_count", 1, "Number of workers.", 1),
    flags.DEFINE_integer("renders", 1, "Performances of each score, each with its own seed.", 1),
    flags.DEFINE_float("max_seconds", 60.0, "Of each piece, from its start.", 1.0),
    flags.DEFINE_integer("seed", 0, "Seed of the first performance."),
]


def main(argv: list[str]) -> None:
    del argv
    from mgen import chain

    options = {flag.name: flag.value for flag in _OPTIONS}
    chain.tokenize(_CODEC.value, _DATASET.value, _SPLITS.value, _OUT.value, **options)
    print(f"tokens: --config.data.dataset={_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
