"""Score a trained model on held-out data; writes what it heard and a JSON beside the figures.

mgen evaluate --workdir=out/codec --split=test --out=out/report
mgen evaluate --workdir=out/lm --dataset=out/tokens --split=validation
mgen evaluate --workdir=out/lm --int8    # what int8 decoding loses

Several processes (as `mgen train` knows them) share batches and weights; what a model heard is
written where there is one.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import json

import jax
from absl import flags

from mgen import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
_DATASET = flags.DEFINE_string("dataset", "", "Prepared dataset; the one of training by default.")
_SPLIT = flags.DEFINE_string("split", "test", "Split of the dataset.")
_BATCHES = flags.DEFINE_integer("batches", 16, "At most that many batches.", lower_bound=1)
_MESH = flags.DEFINE_string("mesh", "data=-1", "Devices, as train.mesh has them.")
_INT8 = flags.DEFINE_bool("int8", False, "Weights of a language model rounded to int8.")
_OUT = flags.DEFINE_string("out", "", "Folder for report.json, audio and pictures.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, evaluation
    from mgen.sharding import hosts

    hosts.initialize()
    what = (_DATASET.value, _SPLIT.value, _BATCHES.value, _MESH.value)
    options = dict(listen=bool(_OUT.value), int8=_INT8.value)
    report, summaries = evaluation.of_workdir(_WORKDIR.value, *what, **options)
    if jax.process_index():
        return
    for name, value in sorted(report.items()):
        print(f"{name:32} {value:.4g}")
    if _OUT.value:
        folder = clips.make_folder(_OUT.value)
        clips.write_summaries(folder, summaries)
        (folder / "report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    cli.run(main)
