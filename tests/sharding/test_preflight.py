"""Training steps compiled for TPUs that are not here, with their own compiler."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest

from mgen import cli, preflight
from mgen.errors import UserError
from mgen.sharding.chips import CHIPS, GIB

# config, topology, mesh, examples, GiB that a device may need at most, parameters.
CASES = [
    ("hierarchy/musiclm_430m:coarse", "v5e:2x4", "fsdp=8", 64, 9.0, 430e6),
    ("hierarchy/musiclm_430m:semantic", "v5e:2x4", "data=2,fsdp=4", 64, 9.0, 430e6),
    ("hierarchy/musiclm_430m:semantic", "h100:1x8", "fsdp=8", 64, 40.0, 430e6),
    ("hierarchy/soundstorm_350m", "v5e:2x4", "fsdp=8", 32, 4.0, 350e6),
]
SCRIPT = """
import json, sys
from mgen import cli, preflight
name, topology, mesh, batch, program = sys.argv[1:]
config = preflight.full_size()[name]
config.unlock()
config.train.mesh, config.data.batch_size = mesh, int(batch)
if "remat" in config.model and not isinstance(config.model.remat, bool):
    config.model.remat = "full"
preflight.quickly()
report = preflight.compiled_program(config, preflight.devices_of(topology), 0, program)
print(json.dumps(dict(peak=report.peak, flops=report.flops, links=report.collectives)))
"""


def compile_for(name, topology, mesh, batch, program="train"):
    pytest.importorskip("jax_plugins.xla_cuda12" if "h100" in topology else "libtpu")
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, name, topology, mesh, str(batch), program],
        capture_output=True, text=True, env=os.environ | cli.COMPILE_ONLY,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "topology", "mesh", "batch", "most", "size"), CASES)
def test_full_size_steps_fit(name, topology, mesh, batch, most, size):
    done = compile_for(name, topology, mesh, batch)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.1 * GIB < found["peak"] < most * GIB and found["flops"] > 1e12
    # Each parameter arrives in bfloat16 twice, its gradient once; activations stay where they are.
    links = sum(found["links"].values()) / (size * 2 * 3)
    assert 0.7 < links < 2.5


def test_what_the_compiler_squeezed_in_does_not_fit(monkeypatch):
    chip = CHIPS["v5e"]
    full = report(peak=1.01 * chip.memory)
    monkeypatch.setattr(preflight, "compiled_program", lambda *_: full)
    with pytest.raises(MemoryError, match=r"peak of 16\.16 of 16 GiB"):
        preflight.fitting_program(None, [], chip)


def test_remedies_build_on_each_other():
    config = preflight.full_size()["hierarchy/musicgen_small"]
    with config.unlocked():
        config.train.mesh, config.model.remat, config.data.batch_size = "data=-1", "none", 4
    mesh, remat = "--config.train.mesh=fsdp=-1", "--config.model.remat=full"
    assert [text for text, _ in preflight.remedies(config, 1)] == [
        mesh,
        f"{mesh} {remat}",
        f"{mesh} {remat} --config.data.batch_size=2",
        f"{mesh} {remat} --config.data.batch_size=1",
    ]
    *_, (_, last) = preflight.remedies(config, 1)
    assert last.data.batch_size == 1 and config.data.batch_size == 4
    # An example a device is the least.
    assert len(list(preflight.remedies(config, 4))) == 2


def test_remedies_find_what_parts_of_a_model_keep():
    every = preflight.full_size()
    config = every["joint/mulan_ast"]
    _, (said, changed), *_ = preflight.remedies(config, 8)
    assert "--config.model.audio.remat=full" in said and changed.model.text.remat == "full"
    assert config.model.text.remat == "dots"
    _, (_, changed), *_ = preflight.remedies(every["semantic/mert_95m"], 8)
    assert changed.model.trunk.remat == "full"


def test_what_does_not_fit_is_changed_until_it_does(monkeypatch, capsys):
    config = preflight.full_size()["hierarchy/musicgen_small"]

    def compiled(config, devices, limit, *_):
        if config.data.batch_size > 16 or config.model.remat != "full":
            raise MemoryError("no room")
        return report()

    monkeypatch.setattr(preflight, "compiled_program", compiled)
    monkeypatch.setattr(preflight, "devices_of", lambda *_: [None] * 8)
    program = preflight.Program("small", config, "v5e:2x4")
    assert not preflight.table([program, program])
    printed = capsys.readouterr().out
    assert printed.count("small does not fit (no room); with --config.train.mesh=fsdp=-1 ") == 2
    assert "remat=full" in printed and "batch_size=12 it does" in printed


def report(peak=2 * GIB):
    chip = CHIPS["v5e"]
    return preflight.Report(
        devices=2, batch=8, arguments=GIB, temporaries=GIB, peak=peak, limit=chip.memory,
        flops=2 * chip.flops, traffic=chip.bandwidth / 2, collectives={"all-gather": 2 * chip.link},
        seconds=1.0,
    )  # fmt: skip


def test_a_report_is_bound_by_the_slowest():
    chip, found = CHIPS["v5e"], report()
    assert found.fits and found.bounds(chip) == {"compute": 1.0, "memory": 0.5, "links": 2.0}
    assert found.utilisation(chip) == 0.5
    program = preflight.Program("x", preflight.full_size()["joint/clap"], "v5e:1x2", slices=2)
    row = preflight.describe(program, found, chip)
    assert row["machine"].startswith("2 x v5e:1x2") and row["step"] == "2000.0 ms (links)"
    assert row["FLOP/B"] == f"{2 * chip.flops / chip.bandwidth:.0f}"


def test_scaling_over_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected at least one"):
        preflight.scaling({}, [], tmp_path)


def test_scaling_keeps_the_batch_of_a_device(monkeypatch, tmp_path, capsys):
    config, compiled = preflight.full_size()["hierarchy/musicgen_small"], []

    def devices(topology):
        return [None] * math.prod(map(int, topology.partition(":")[2].split("x")))

    def program(config, devices, *_):
        batch = config.data.batch_size
        compiled.append((config.train.mesh, batch))
        found = report()
        flops = found.flops / found.devices * len(devices)
        return dataclasses.replace(found, devices=len(devices), batch=batch, flops=flops)

    monkeypatch.setattr(preflight, "devices_of", devices)
    monkeypatch.setattr(preflight, "compiled_program", program)
    preflight.scaling({"small": (config, 4)}, ["v5e:2x4", "v5e:8x16"], tmp_path)
    # Over more devices parameters are copied, not split further.
    assert compiled == [("data=-1,fsdp=8", 32), ("data=-1,fsdp=64", 512)]
    rows = json.loads((tmp_path / "scaling.json").read_text())["small"]
    assert [(row["devices"], row["batch"]) for row in rows] == [("8", "32"), ("128", "512")]
    for row in rows:
        assert row["bounds"] == {"compute": 1.0, "memory": 0.5, "links": 2.0}
        assert row["utilisation"] == 0.5
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.count("2000.0 ms (links)") == 2 and "v5e:8x16 data=-1,fsdp=64" in printed


def test_full_size_configs_are_all_but_the_tiny_ones():
    names = preflight.full_size().keys()
    assert {"hierarchy/magenta_rt_base", "hierarchy/musiclm_430m:fine"} <= names
    assert not any("tiny" in name for name in names)


def test_unknown_chips_are_refused():
    with pytest.raises(UserError, match="v9x:2x2: expected CHIP:SHAPE"):
        preflight.chip_of("v9x:2x2")


OPTIONS = """
import sys
import jax, jax.numpy as jnp
from mgen import preflight
from mgen.sharding.mesh import batch_sharding, make_mesh
from mgen.sharding.options import overlapping

mesh = make_mesh("data=4", preflight.devices_of(sys.argv[1]))
options = overlapping(mesh)
assert options
x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=batch_sharding(mesh))

def compiled(options):
    return jax.jit(lambda x: (x @ x.T).sum(), compiler_options=options).lower(x).compile()

compiled(options)
try:
    compiled({**options, "xla_no_such_option": True})
except Exception as error:
    print("refused", error)
"""


@pytest.mark.parametrize(
    ("topology", "plugin"), [("v5e:2x2", "libtpu"), ("h100:1x4", "jax_plugins.xla_cuda12")]
)
def test_compilers_know_the_options_that_overlap(topology, plugin, run_python):
    pytest.importorskip(plugin)
    printed = run_python(OPTIONS, topology, **cli.COMPILE_ONLY)
    # So that the test says something: a name that there is not is refused.
    assert "xla_no_such_option" in printed
