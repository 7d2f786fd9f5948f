"""Runs of several processes on this host, and a small dataset for them."""

import os
import socket
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def scores(tmp_path_factory):
    """corpus_scores/band, a few pieces."""
    out = tmp_path_factory.mktemp("data")
    command = ["prepare_data", "--dataset=corpus_scores/band", "--limit=12", f"--out={out}"]
    subprocess.run([sys.executable, "-m", "mgen.cli", *command], check=True)
    return next(out.glob("corpus_scores/band/*"))


@pytest.fixture
def together():
    """Starts `mgen <args>` as several processes of one run, two devices each."""
    started = []

    def start(processes, *args):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        for number in range(processes):
            own = dict(
                MGEN_COORDINATOR=address, MGEN_PROCESSES=str(processes), MGEN_PROCESS=str(number),
                JAX_NUM_CPU_DEVICES="2", MGEN_NO_PROGRESS="0",
            )  # fmt: skip
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mgen.cli", *map(str, args)], text=True,
                    env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        return started[-processes:]

    yield start
    for process in started:
        process.kill()
        process.communicate()
