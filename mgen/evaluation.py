"""A trained model scored on held-out data, by any number of processes."""

import dataclasses
from typing import Any

import jax

from mgen import tree
from mgen.inputs import pipeline
from mgen.sharding import mesh as mesh_lib
from mgen.train import checkpoint, loop


def of_workdir(
    workdir: str,
    dataset: str,
    split: str,
    batches: int,
    mesh: str,
    listen: bool,
    int8: bool,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures of a model, and audio and pictures of the first batch (`Task.summaries`).

    Processes share batches and weights as in training; baselines and what is listened to are the
    work of one alone: the first has the baselines, no other process may be there for audio.

    Args:
      dataset: prepared dataset, "" for the one of training.
      batches: at most so many.
      mesh: see `mgen.sharding.mesh.make_mesh`.
      listen: whether audio and pictures are made.
      int8: with weights rounded as `generate --int8` has them.

    Raises `UserError` where the workdir or the data cannot be read.
    """
    devices = mesh_lib.make_mesh(mesh)
    task, state = checkpoint.load_state(workdir, mesh=devices)
    if int8:
        params = task.generator_params(state)
        places = jax.tree.map(lambda x: x.sharding, params)
        rounded = jax.jit(task.int8_values, out_shardings=places)(params)
        name = "params" if state.ema is None else "ema"
        state = dataclasses.replace(state, **{name: rounded})
    config, number, processes = task.config, jax.process_index(), jax.process_count()
    config.data.dataset = dataset or config.data.dataset

    def data(split: str, train: bool, **part: int) -> pipeline.Iterator:
        return pipeline.make_iterator(
            config.data, split=split, seed=config.seed, train=train, **part
        )

    compiled, key = loop.CompiledSteps(task, devices), jax.random.key(config.seed)
    own = data(split, False, process_index=number, process_count=processes)
    report, first = loop.evaluate(compiled, state, own, batches, key)
    if number:
        return report, {}
    baseline = task.baseline(data(config.data.train_split, True), data(split, False))
    report |= {name: float(value) for name, value in baseline.items()}
    report["parameters"] = tree.size(task.generator_params(state))
    alone = listen and processes == 1
    return report, task.summaries(state, first, key) if alone else {}
