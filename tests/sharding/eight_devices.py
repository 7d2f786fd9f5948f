"""One step of a config's task, and its sampling, on meshes of eight devices against one device;
run by `test_families.py` in a process of its own.

python eight_devices.py CONFIG:ARG MESH [MESH ...]
"""

# ruff: noqa: E402
import importlib
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import numpy as np

from mgen.sharding.mesh import OnMesh, make_mesh
from mgen.train.checkpoint import make_task
from mgen.train.loop import CompiledSteps
from mgen.train.task import Task

BATCH = 8


def random_batch(task):
    """Of the shapes that the task wants; integers are 0 or 1, which every vocabulary has."""
    rng = np.random.default_rng(0)

    def draw(spec):
        if spec.dtype == jnp.bool_:
            return np.ones(spec.shape, bool)
        if jnp.issubdtype(spec.dtype, jnp.integer):
            return rng.integers(0, 2, spec.shape).astype(spec.dtype)
        return (0.1 * rng.standard_normal(spec.shape)).astype(spec.dtype)

    return {name: draw(spec) for name, spec in task.batch_spec(BATCH).items()}


def on(task, text):
    """Compiled steps on a mesh, and a state there."""
    devices = jax.devices()[:1] if text == "data=1" else jax.devices()
    compiled = CompiledSteps(task, make_mesh(text, devices))
    return compiled, compiled.init(jax.random.key(0))


def step(task, batch, text):
    """Parameters and metrics after a step, and whether a parameter is split over `tensor`."""
    compiled, state = on(task, text)
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state.params)]
    key = compiled.key(jax.random.key(1), 0)
    state, metrics = compiled.train(state, compiled.put(batch), key)
    return jax.device_get((state.params, metrics)), any("tensor" in spec for spec in specs)


def sampled(task, batch, text):
    """What generation or separation makes."""
    compiled, state = on(task, text)
    sample = OnMesh(compiled.train.mesh, jax.jit(task.sample))
    return jax.device_get(sample(state, compiled.put(batch), compiled.key(jax.random.key(1), 0)))


def main(name, *meshes):
    name, _, arg = name.partition(":")
    config = importlib.import_module(f"mgen.configs.{name}").get_config(arg)
    with config.unlocked():
        config.data.batch_size = BATCH
        for part in (config.optim, config.get("optim_d")):
            if part:  # Adam's first step is a sign, which rounding turns where a gradient is 0.
                part.update(name="sgd", clip=0.0, warmup=0)
    task = make_task(config)
    batch = random_batch(task)
    expected, _ = step(task, batch, "data=1")
    for text in meshes:
        found, split = step(task, batch, text)
        assert split == ("tensor=" in text), text
        # Float32; only the order of the sums differs.
        jax.tree.map(
            lambda a, b, text=text: np.testing.assert_allclose(
                a, b, rtol=1e-4, atol=1e-5, err_msg=text
            ),
            found,
            expected,
        )
    # Latents want a trained codec, whose place holds zeros here.
    if type(task).sample is not Task.sample and "codec" not in config:
        expected, found = (sampled(task, batch, text) for text in ("data=1", meshes[-1]))
        assert np.ptp(expected) > 0
        # Codes are equal; audio goes through many steps, each with rounding of its own.
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        print("samples are")
    print("equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
