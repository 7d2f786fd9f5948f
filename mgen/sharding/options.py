"""Options of XLA's compilers, by the platform of the devices.

What is here was accepted by the compilers of jax 0.10.2 (libtpu 0.0.42, CUDA 12), which refuse a
name that they do not know; `tests/sharding` asks them again.
"""

from typing import Any

from jax.sharding import Mesh

# Collectives beside computation that does not wait for them, at the price of the memory of what is
# under way.
OVERLAP: dict[str, dict[str, Any]] = {
    "tpu": {
        "xla_tpu_enable_latency_hiding_scheduler": True,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_enable_async_all_gather": True,
        "xla_tpu_overlap_compute_collective_tc": True,
    },
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_enable_while_loop_double_buffering": True,
    },
}


def overlapping(mesh: Mesh) -> dict[str, Any] | None:
    """Those of `OVERLAP` for the devices of a mesh, None for CPUs."""
    platform = mesh.devices.flat[0].platform
    return OVERLAP.get("gpu" if platform == "cuda" else platform)
