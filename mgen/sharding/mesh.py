"""The device mesh and the shardings of a training step.

A mesh is written `data=4,fsdp=2`; one axis may be -1 (the devices that are left). Batches are split
over `data` and `fsdp`, parameters and optimiser state over `fsdp` on their largest divisible axis
(ZeRO-3), everything else is replicated.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mgen.errors import UserError
from mgen.typing import PyTree

AXES = ("data", "fsdp", "tensor", "seq")


def make_mesh(spec: str = "data=-1", devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices from "axis=size,..."; axes not named have size 1. `UserError` where
    sizes and devices disagree."""
    devices = jax.devices() if devices is None else devices
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, spec.split(",")):
        name, _, size = part.strip().partition("=")
        if name not in sizes or not size.lstrip("-").isdigit() or int(size) == 0:
            raise UserError(f"train.mesh={spec!r}: expected axis=size with an axis of {AXES}")
        sizes[name] = int(size)
    free = [name for name, size in sizes.items() if size < 0]
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if len(free) == 1 and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if (free and len(free) > 1) or math.prod(sizes.values()) != len(devices):
        raise UserError(f"train.mesh={spec!r}: does not fit the {len(devices)} devices of this run")
    # Auto axes: Explicit ones break Linen's logical constraints.
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch is split over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def state_sharding(mesh: Mesh, state: PyTree) -> PyTree:
    """A sharding for each leaf of `state` (arrays or ShapeDtypeStructs)."""
    shards = mesh.shape["fsdp"]

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        divisible = [size if size % shards == 0 else 0 for size in leaf.shape]
        if shards == 1 or len(leaf.shape) < 2 or not any(divisible):
            return replicated(mesh)
        axis = int(np.argmax(divisible))
        return NamedSharding(mesh, P(*(None,) * axis, "fsdp"))

    return jax.tree.map(place, state)
