"""The device mesh and the shardings of a training step.

A mesh is written `data=4,fsdp=2`; one axis may be -1 (the devices that are left). Batches are split
over `data` and `fsdp`, and over `seq` in time; parameters, their averages and the optimiser's state
over `tensor` as `RULES` has it, and over `fsdp` on their largest axis that is left (ZeRO-3).
Everything else is replicated. Where a size does not divide, an axis stays whole: any model runs on
any mesh.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mgen.errors import UserError
from mgen.typing import Array, PyTree

AXES = ("data", "fsdp", "tensor", "seq")
BATCH = ("data", "fsdp")
# The axis of a parameter, from its end, that `tensor` splits, by the end of its path: heads of
# attention, the hidden width of a feed-forward, the vocabulary (Megatron's columns and rows: what
# follows sums over the axis that was split).
RULES: tuple[tuple[str, int], ...] = (
    (r"(query|key|value)/(kernel|bias)$", -2),
    (r"(attention|time|tracks|global|text)\w*/out/kernel$", -3),
    (r"ff\d*_(in|gate)/(kernel|bias)$", -1),
    (r"ff\d*_out/kernel$", -2),
    (r"embed\w*/embedding$", -2),
    (r"heads(/\w+)?/kernel$", -1),
    (r"pointwise_in/kernel$", -1),
    (r"pointwise_out/kernel$", -2),
)


def make_mesh(spec: str = "data=-1", devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices from "axis=size,..."; axes not named have size 1.

    Of several slices of TPUs, `data` goes over the network between them and the others stay within
    one.

    Raises:
      UserError: sizes and devices disagree.
    """
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
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes["data"] % slices:
        raise UserError(f"train.mesh={spec!r}: data is no multiple of the {slices} slices")
    # Auto axes: Explicit ones break Linen's logical constraints.
    return Mesh(_placed(sizes, devices, slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _placed(sizes: dict[str, int], devices: list[jax.Device], slices: int) -> np.ndarray:
    """Devices [data, fsdp, tensor, seq], neighbours in the mesh near each other in the machine."""
    shape = tuple(sizes.values())
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]),
        (slices, 1, 1, 1),
        devices,
        allow_split_physical_axes=True,
    )


def batch_sharding(mesh: Mesh, shape: tuple[int, ...] = ()) -> NamedSharding:
    """The leading axis of a batch is split over `data` and `fsdp`, the next one, where it divides,
    over `seq`."""
    if len(shape) > 1 and mesh.shape["seq"] > 1 and shape[1] % mesh.shape["seq"] == 0:
        return NamedSharding(mesh, P(BATCH, "seq"))
    return NamedSharding(mesh, P(BATCH))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[name] for name in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def state_sharding(mesh: Mesh, state: PyTree) -> PyTree:
    """A sharding for each leaf of `state` (arrays or ShapeDtypeStructs)."""

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, P(*_axes(name, leaf.shape, mesh)))

    return jax.tree_util.tree_map_with_path(place, state)


def _axes(name: str, shape: tuple[int, ...], mesh: Mesh) -> list[str | None]:
    """The mesh axis of each axis of a leaf."""
    axes: list[str | None] = [None] * len(shape)
    if mesh.shape["tensor"] > 1:
        axis = next((axis for rule, axis in RULES if re.search(rule, name)), 0)
        if axis and len(shape) >= -axis and shape[axis] % mesh.shape["tensor"] == 0:
            axes[axis] = "tensor"
    if mesh.shape["fsdp"] > 1 and len(shape) > 1:
        free = [
            size if axis is None and size % mesh.shape["fsdp"] == 0 else 0
            for size, axis in zip(shape, axes)
        ]
        if any(free):
            axes[int(np.argmax(free))] = "fsdp"
    return axes


def with_shardings(leaves: PyTree, shardings: PyTree) -> PyTree:
    """ShapeDtypeStructs of arrays, or of others, each with its sharding."""
    return jax.tree.map(
        lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
        leaves,
        shardings,
    )


class OnMesh:
    """A jitted function that is traced with a mesh set, for `constrain`."""

    def __init__(self, mesh: Mesh, function: Any):
        self.mesh, self.function = mesh, function

    def __call__(self, *args: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.function(*args)

    def lower(self, *args: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.function.lower(*args)


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """`x` with its leading axes split over mesh axes; as it is where no mesh is set
    (`jax.set_mesh`) or a size does not divide.

    Without it, XLA may gather activations where parameters are split, which are smaller.
    """
    spec = divided(x.shape, *axes)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def platform() -> str:
    """Of the devices that a program is traced for: those of the mesh that is set, which need not be
    here, or the default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def divided(shape: tuple[int, ...], *axes: str | tuple[str, ...] | None) -> P | None:
    """How an array's leading axes are split over axes of the mesh that is set, each where its size
    divides; None where there is no mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.axis_names != AXES or mesh.size == 1:
        return None

    def fits(axis: str | tuple[str, ...] | None, size: int) -> bool:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return size % math.prod(mesh.shape[name] for name in names) == 0

    return P(*(axis if fits(axis, size) else None for axis, size in zip(axes, shape)))
