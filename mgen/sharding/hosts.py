"""Many processes as one run: who they are, from what the launcher left in the environment."""

import os
from collections.abc import Mapping

import jax

from mgen.errors import UserError

# Set by hand: host:port of the first process, how many, which one.
OWN = ("MGEN_COORDINATOR", "MGEN_PROCESSES", "MGEN_PROCESS")
# Sizes of what `mpirun` or `srun` started (of the whole job, SLURM_NTASKS, a batch script has too,
# which is one process), slices of TPUs (of one host each, it may be), and the workers of one slice
# (GKE and TPU VMs).
MPI, SLURM = "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"
SIZES = (MPI, SLURM, "MEGASCALE_NUM_SLICES")
WORKERS = "TPU_WORKER_HOSTNAMES"


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """`jax.distributed.initialize` where this is one process of several; otherwise nothing.

    JAX itself knows the address and the numbers under Slurm, Open MPI, GKE and on TPU VMs.

    Raises:
      UserError: some of `OWN` without the others.
    """
    own = [environment.get(name, "") for name in OWN]
    if all(own):
        address, processes, process = own
        if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
            found = f"{OWN[1]}={processes}, {OWN[2]}={process}"
            raise UserError(f"{found}: expected numbers, 0 <= i < n")
        jax.distributed.initialize(address, int(processes), int(process))
    elif any(own):
        lacking = [name for name, value in zip(OWN, own) if not value]
        raise UserError(f"{', '.join(lacking)}: missing beside the others of {', '.join(OWN)}")
    elif several(environment):
        jax.distributed.initialize()


# Number and count of the processes, as launchers of them write it. Under Slurm `mpirun` starts its
# daemons by `srun`, so what its processes find of Slurm is their daemon's.
PARTS = ((OWN[2], OWN[1]), ("OMPI_COMM_WORLD_RANK", MPI), ("SLURM_PROCID", SLURM))


def part(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's number among those that were started together, and how many they are, for work
    that is shared without a word between them; (0, 1) where it is alone."""
    for names in PARTS:
        found = [environment.get(name, "") for name in names]
        if all(value.isdigit() for value in found):
            return int(found[0]), int(found[1])
    workers, number = environment.get(WORKERS, ""), environment.get("TPU_WORKER_ID", "")
    if "," in workers and number.isdigit():
        return int(number), len(workers.split(","))
    return 0, 1


def several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started more processes than this one."""
    sizes = (environment.get(name, "1") for name in SIZES)
    return any(size.isdigit() and int(size) > 1 for size in sizes) or (
        "," in environment.get(WORKERS, "")
    )
