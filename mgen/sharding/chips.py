"""What TPUs can do at best, from their makers' data sheets."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
      memory: bytes of HBM.
      flops: multiplications and additions in bfloat16 a second, dense.
      bandwidth: of HBM, bytes a second.
      link: bytes a second that it can send to its neighbours, over all links of its slice or node.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float


# By what a topology's name begins with; of tpu7x a device is half a chip.
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1.23e12, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 0.82e12, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 2.77e12, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 1.64e12, 448e9),
    "tpu7x": Chip(96 * GIB, 1154e12, 3.69e12, 600e9),
}
