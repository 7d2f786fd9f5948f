"""Build a dataset once; training reads it from then on. The last line is the path to train on.

  mgen prepare_data --dataset=corpus_scores/band --out=out/data --limit=200
  mgen prepare_data --dataset=corpus_scores/quartets --out=out/data --midi_dir=my_midi
  mgen prepare_data --dataset=slakh2100 --out=out/data --source=slakh2100_flac_redux
  mgen prepare_data --dataset=folder_stems --out=out/data --source=my_songs

A build with the same options is reused; what had to be left out is listed with its reason.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import importlib
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import mgen.data
from mgen import cli
from mgen.errors import UserError

_DATASET = flags.DEFINE_string("dataset", None, "Name, or name/config.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder; NAME/CONFIG/VERSION is made in it.", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Build anew what is there.")
_OPTIONS = {
    "source": flags.DEFINE_string("source", None, "Folder of the recordings to read."),
    "midi_dir": flags.DEFINE_string("midi_dir", None, "MIDI files in place of bundled scores."),
    "collections": flags.DEFINE_string("collections", None, "Bundled collections, a,b,c."),
    "stems": flags.DEFINE_string("stems", None, "Stems of folder_stems, a,b,c."),
    "licence": flags.DEFINE_string("licence", None, "Licence of your recordings."),
    "limit": flags.DEFINE_integer("limit", None, "At most this many pieces.", lower_bound=1),
    "workers": flags.DEFINE_integer("workers", None, "Processes; one a core.", lower_bound=1),
}


def main(argv: Sequence[str]) -> None:
    del argv
    name, _, config = _DATASET.value.partition("/")
    root = Path(mgen.data.__path__[0])
    known = sorted(path.parent.name for path in root.glob("*/*_dataset_builder.py"))
    if name not in known:
        raise UserError(f"--dataset={_DATASET.value}: no such dataset, one of {', '.join(known)}")
    if Path(_OUT.value).is_file():
        raise UserError(f"--out={_OUT.value}: a file, expected a folder")
    options = {key: flag.value for key, flag in _OPTIONS.items() if flag.value is not None}
    module = importlib.import_module(f"mgen.data.{name}.{name}_dataset_builder")
    folder = module.Builder.prepare(
        data_dir=_OUT.value, config=config or None, overwrite=_OVERWRITE.value, **options
    )
    print(f"--config.data.dataset={folder}")


if __name__ == "__main__":
    cli.run(main)
