"""Train any family from a config. Run the same command again to go on where it stopped.

  mgen train --config=codec/tiny_16khz --workdir=out/codec --config.data.dataset=PATH
  mgen train --config=codec/tiny_16khz:smoke --workdir=/tmp/codec --config.data.dataset=PATH

Any field of the config can be set: --config.train.steps=2000 --config.data.batch_size=8.
Writes checkpoints/, logs/ (TensorBoard) and manifest.json into the workdir.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import jax
from absl import flags

from mgen import cli

_CONFIG = cli.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.", required=True)
_STOPPED_CODE = flags.DEFINE_integer(
    "stopped_code", 0, "Exit code where a signal stopped the run before its last step."
)
flags.mark_flag_as_required("config")
flags.declare_key_flag("config")


def main(argv: list[str]) -> None:
    del argv
    from mgen.inputs import pipeline
    from mgen.sharding import hosts
    from mgen.train import checkpoint, loop

    hosts.initialize()
    config = _CONFIG.value
    task = checkpoint.make_task(config)
    parents = pipeline.check(config.data, task.requires()) | task.parents()

    def make_data(train: bool) -> pipeline.Iterator:
        return pipeline.make_iterator(
            config.data,
            split=config.data.train_split if train else config.data.eval_split,
            seed=config.seed,
            train=train,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    done = loop.train(task, config, _WORKDIR.value, make_data, parents)
    print(f"{_WORKDIR.value}: {done} of {config.train.steps} steps done")
    if done < config.train.steps:
        sys.exit(_STOPPED_CODE.value)


if __name__ == "__main__":
    cli.run(main)
