"""Who the processes of a run are, from their environment."""

import pytest

from mgen.errors import UserError
from mgen.sharding import hosts


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16"}, False),
        ({"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, False),  # a batch script, outside of `srun`
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_launchers_of_several_processes_are_known(environment, expected):
    assert hosts.several(environment) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"MGEN_PROCESS": "1", "MGEN_PROCESSES": "3", "SLURM_PROCID": "0"}, (1, 3)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16"}, (5, 16)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        # Two nodes of four, by a daemon on each.
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
                "OMPI_COMM_WORLD_RANK": "6",
                "OMPI_COMM_WORLD_SIZE": "8",
            },
            (6, 8),
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, (0, 1)),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}, (2, 3)),
    ],
)
def test_every_process_knows_its_part(environment, expected):
    assert hosts.part(environment) == expected


def test_half_of_the_settings_is_refused():
    with pytest.raises(UserError, match="MGEN_PROCESS: missing beside"):
        hosts.initialize({"MGEN_COORDINATOR": "a:1", "MGEN_PROCESSES": "2"})
    own = {"MGEN_COORDINATOR": "a:1", "MGEN_PROCESSES": "2", "MGEN_PROCESS": "2"}
    with pytest.raises(UserError, match="expected numbers"):
        hosts.initialize(own)
