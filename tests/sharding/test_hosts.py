"""Who the processes of a run are, from their environment."""

import pytest

from mgen.errors import UserError
from mgen.sharding import hosts


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "16"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_launchers_of_several_processes_are_known(environment, expected):
    assert hosts.several(environment) == expected


def test_half_of_the_settings_is_refused():
    with pytest.raises(UserError, match="MGEN_PROCESS: missing beside"):
        hosts.initialize({"MGEN_COORDINATOR": "a:1", "MGEN_PROCESSES": "2"})
    own = {"MGEN_COORDINATOR": "a:1", "MGEN_PROCESSES": "2", "MGEN_PROCESS": "2"}
    with pytest.raises(UserError, match="expected numbers"):
        hosts.initialize(own)
