"""A step on many devices equals the step on one; meshes are read from text and checked."""

import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from mgen.errors import UserError
from mgen.sharding import mesh

EIGHT_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np, sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec); spec.loader.exec_module(toy)
from mgen.errors import UserError
from mgen.sharding.mesh import make_mesh
from mgen.train.loop import CompiledSteps

task = toy.LinearTask(toy.make_config())
results = {}
for text in ["data=1", "data=8", "fsdp=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2"]:
    devices = jax.devices()[:1] if text == "data=1" else jax.devices()
    compiled = CompiledSteps(task, make_mesh(text, devices))
    state, data = compiled.init(jax.random.key(0)), toy.make_data(True)
    for step in range(3):
        batch = compiled.put(next(data))
        state, metrics = compiled.train(state, batch, compiled.key(jax.random.key(1), step))
    if "fsdp=4" in text:
        assert not state.params["weights"].sharding.is_fully_replicated
        assert len(batch["x"].sharding.device_set) == 8
    results[text] = jax.device_get((state.params, state.ema, metrics))
for text, result in results.items():
    # float32; only the order of the sums differs.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=text),
        result, results["data=1"])
print("equal")
compiled = CompiledSteps(task, make_mesh("data=4,fsdp=2"))
try:
    compiled.put({name: x[:6] for name, x in next(toy.make_data(True)).items()})
except UserError as error:
    print(error)
"""


def test_eight_devices_equal_one():
    toy = Path(__file__).parents[1] / "train" / "conftest.py"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, toy], capture_output=True, text=True
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]
    assert "config.data.batch_size=6: no multiple of the 8 parts" in done.stdout


def test_mesh_from_text():
    one = mesh.make_mesh("data=-1")
    assert dict(one.shape) == {"data": len(jax.devices()), "fsdp": 1, "tensor": 1, "seq": 1}


@pytest.mark.parametrize(
    "text", ["data=3", "rows=1", "data", "data=x", "data=-1,fsdp=-1", "data=0"]
)
def test_bad_mesh_is_refused_with_its_text(text):
    with pytest.raises(UserError, match=r"train\.mesh="):
        mesh.make_mesh(text)


def test_of_several_slices_data_goes_between_them():
    devices = [
        types.SimpleNamespace(
            id=i, slice_index=i // 4, process_index=i // 4, platform="cpu", device_kind="cpu"
        )
        for i in range(8)
    ]
    placed = mesh._placed(dict(data=4, fsdp=2, tensor=1, seq=1), devices, slices=2)
    assert placed.shape == (4, 2, 1, 1) and {d.id for d in placed.flat} == set(range(8))
    slices = [{device.slice_index for device in row.flat} for row in placed]
    assert slices == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match="data is no multiple of the 2 slices"):
        mesh.make_mesh("data=1,fsdp=8", devices)
