"""Fit a codebook by k-means: semantic tokens, the RVQ of a joint embedding, mel-RVQ targets.

mgen fit_codebook --encoder=out/semantic --layer=3 --dataset=out/data --out=out/semantic_codebook \\
  --size=512
mgen fit_codebook --encoder=out/joint --dataset=out/data --out=out/joint_codebook --levels=12
mgen fit_codebook --encoder=out/melody --stride_seconds=3 --levels=24 --size=512 ...
mgen fit_codebook --features=mel --config=semantic/tiny_muq --dataset=out/data --out=out/mel_rvq \\
  --levels=4 --size=256

Interrupted: run it again, it goes on. --out holds the vectors until the codebook is done.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the codebook.", required=True)
_ENCODER = flags.DEFINE_string("encoder", "", "Workdir of a semantic encoder, a joint embedding.")
_LAYER = flags.DEFINE_integer("layer", None, "Of a semantic encoder.")
_RATE = flags.DEFINE_float("rate", 25.0, "Hz of a semantic encoder's features.", 0.1)
_STRIDE = flags.DEFINE_float("stride_seconds", 1.0, "Of the windows of an embedding.", 0.01)
_FEATURES = flags.DEFINE_enum("features", "encoder", ["encoder", "mel"], "What is quantised.")
_CONFIG = cli.define_config_flag()
_KMEANS = [
    flags.DEFINE_integer("size", 1024, "Vectors of a level.", 2),
    flags.DEFINE_integer("levels", 1, "Levels, each of what those before leave.", 1),
    flags.DEFINE_enum("algorithm", "minibatch", ["minibatch", "lloyd"], "Of k-means."),
    flags.DEFINE_integer("batch", 4096, "Rows of a mini-batch.", 1),
    flags.DEFINE_integer("passes", 4, "Over the vectors, for each level.", 1),
    flags.DEFINE_integer("seed", 0, "Of samples, orders and performances."),
]
_DATA = [
    flags.DEFINE_string("split", "train", "Split of the dataset."),
    flags.DEFINE_integer("max_vectors", 1_000_000, "At most so many, over all pieces.", 1),
    flags.DEFINE_float("max_seconds", 60.0, "Of each piece, from its start.", 1.0),
]


def main(argv: list[str]) -> None:
    del argv
    from mgen import features, kmeans

    chosen = (_FEATURES, _CONFIG, _ENCODER, _LAYER, _RATE, _STRIDE)
    of = features.choose(*(flag.value for flag in chosen))
    config = kmeans.KMeansConfig(**{flag.name: flag.value for flag in _KMEANS})
    data = {flag.name: flag.value for flag in _DATA}
    book = features.fit_codebook(of, _DATASET.value, _OUT.value, config, **data)
    left = ", ".join(f"{error:.4g}" for error in book.about["errors"])
    print(f"{_OUT.value}: {book.vectors.shape} of {book.about['vectors']} vectors; errors {left}")


if __name__ == "__main__":
    cli.run(main)
