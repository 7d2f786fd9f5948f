"""Score a trained model on held-out data; writes what it heard and a JSON beside the figures.

mgen evaluate --workdir=out/codec --split=test --out=out/report
mgen evaluate --workdir=out/lm --dataset=out/tokens --split=validation
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
_OUT = flags.DEFINE_string("out", "", "Folder for report.json, audio and pictures.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, tree
    from mgen.inputs import pipeline
    from mgen.sharding import mesh
    from mgen.train import checkpoint, loop

    task, state = checkpoint.load_state(_WORKDIR.value)
    config = task.config
    config.data.dataset = _DATASET.value or config.data.dataset

    def make_data(split: str, train: bool) -> pipeline.Iterator:
        return pipeline.make_iterator(config.data, split=split, seed=config.seed, train=train)

    compiled = loop.CompiledSteps(task, mesh.make_mesh())
    key = jax.random.key(config.seed)
    data = make_data(_SPLIT.value, train=False)
    report, first = loop.evaluate(compiled, state, data, _BATCHES.value, key)
    report |= task.baseline(
        make_data(config.data.train_split, train=True), make_data(_SPLIT.value, train=False)
    )
    report["parameters"] = tree.size(task.generator_params(state))
    for name, value in sorted(report.items()):
        print(f"{name:32} {value:.4g}")
    if _OUT.value:
        folder = clips.make_folder(_OUT.value)
        clips.write_summaries(folder, task.summaries(state, first, key))
        (folder / "report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    cli.run(main)
