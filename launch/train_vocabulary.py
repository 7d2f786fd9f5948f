"""Train a SentencePiece vocabulary on the captions of a dataset, for a joint embedding.

mgen train_vocabulary --dataset=out/data --out=out/vocabulary.model --size=512
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

_DATASET = flags.DEFINE_string("dataset", None, "Prepared dataset.", required=True)
_OUT = flags.DEFINE_string("out", None, "The .model file to write.", required=True)
_SPLIT = flags.DEFINE_string("split", "train", "Split of the dataset.")
_SIZE = flags.DEFINE_integer("size", 512, "Most pieces.", lower_bound=8)
_CAPTIONS = flags.DEFINE_integer("captions", 2000, "Captions to train on.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    from mgen.errors import UserError
    from mgen.inputs import vocabulary
    from mgen.inputs.records import open_records
    from mgen.progress import track

    if not _OUT.value.endswith(".model"):
        raise UserError(f"--out={_OUT.value}: expected a name that ends in .model")
    source = open_records(_DATASET.value, _SPLIT.value)
    texts = vocabulary.caption_stream(source, _CAPTIONS.value)
    texts = track(texts, "captions", unit="captions", total=_CAPTIONS.value)
    made = vocabulary.train(texts, _SIZE.value, _OUT.value)
    print(f"{_OUT.value}: {made.size} pieces; --config.data.vocabulary={_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
