"""What accelerators can do at best, by data sheets, and what a compiler wants to know
of GPUs that are not here."""

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
      gpu: of a GPU, else None.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    gpu: "Gpu | None" = None


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks of an NVIDIA GPU.

    Attributes:
      name: as its driver has it.
      capability: CUDA's compute capability. cores: streaming multiprocessors.
      cache: bytes of L2. shared: of shared memory, of a core and at most of a block.
      clock: GHz.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    cache: int
    shared: tuple[int, int]
    clock: float

    def target(self, chip: Chip) -> str:
        """As XLA's text of a target."""
        major, minor = self.capability
        core, block = self.shared
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            runtime_version {{ major: 12 minor: 8 patch: 0 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              core_count: {self.cores}
              fpus_per_core: {128 if major > 8 else 64}
              clock_rate_ghz: {self.clock}
              l2_cache_size: {self.cache}
              device_memory_size: {int(chip.memory)}
              memory_bandwidth: {int(chip.bandwidth)}
              shared_memory_per_block: {48 * 2**10}
              shared_memory_per_block_optin: {block}
              shared_memory_per_core: {core}
              threads_per_warp: 32
              threads_per_block_limit: 1024
              threads_per_core_limit: 2048
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              block_dim_limit_x: {2**31 - 1}
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
            }}"""


_A100 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 40 * 2**20, (167936, 166912), 1.41)
_H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 50 * 2**20, (233472, 232448), 1.98)
_H200 = dataclasses.replace(_H100, name="NVIDIA H200")
# By what a topology's name begins with; of tpu7x a device is half a chip.
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1.23e12, 300e9),
    "v5e": Chip(16 * GIB, 197e12, 0.82e12, 200e9),
    "v5p": Chip(95 * GIB, 459e12, 2.77e12, 600e9),
    "v6e": Chip(32 * GIB, 918e12, 1.64e12, 448e9),
    "tpu7x": Chip(96 * GIB, 1154e12, 3.69e12, 600e9),
    "a100": Chip(80 * GIB, 312e12, 2.04e12, 300e9, _A100),
    "h100": Chip(79.6 * GIB, 989e12, 3.35e12, 450e9, _H100),
    "h200": Chip(140.4 * GIB, 989e12, 4.8e12, 450e9, _H200),
}
