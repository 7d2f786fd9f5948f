"""Launchers for clusters: checked by shellcheck, run against programs that write down how they were
called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "launch" / "cluster"


@pytest.fixture
def run(tmp_path):
    """Runs a script with fake programs on the PATH; gives the result and the calls, a line each."""
    calls = tmp_path / "calls"

    def start(script, *args, fakes=(), prints="", **environment):
        for name in fakes:
            fake = tmp_path / name
            fake.write_text(f'#!/bin/bash\nprintf "%s|" {name} "$@" >> {calls}\necho >> {calls}\n')
            if prints and name == fakes[0]:
                fake.write_text(fake.read_text() + f'echo "{prints}"\n')
            fake.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            [CLUSTER / script, *args], capture_output=True, text=True, cwd=CLUSTER,
            env=os.environ | {"PATH": path} | environment,
        )  # fmt: skip
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [line.rstrip("|").split("|") for line in lines]

    return start


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_pod.sh"])
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck", path=Path(os.sys.executable).parent)
    done = subprocess.run([shellcheck, CLUSTER / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_starts_a_process_a_gpu_and_goes_on_where_time_ran_out(run):
    args = ("--config=codec/tiny_16khz", "--workdir=/shared/a b")
    fakes = ("srun", "scontrol")
    done, calls = run(
        "slurm.sh", *args, fakes=fakes, prints="/shared: 700 of 700 steps done", SLURM_JOB_ID="7"
    )
    assert done.returncode == 0, done.stderr
    (srun,) = calls
    assert srun[:4] == ["srun", "--kill-on-bad-exit=1", "bash", "-c"] and srun[-2:] == list(args)
    assert "CUDA_VISIBLE_DEVICES=$SLURM_LOCALID exec mgen train" in srun[4]
    done, calls = run(
        "slurm.sh", *args, fakes=fakes, prints="/shared: 300 of 700 steps done", SLURM_JOB_ID="7"
    )
    assert done.returncode == 0 and calls[-1] == ["scontrol", "requeue", "7"]
    done, _ = run("slurm.sh")
    assert done.returncode == 1 and "usage: sbatch" in done.stderr


def test_tpu_pod_from_creation_to_deletion(run):
    for action, args, words in (
        ("create", ["pod", "v5litepod-64", "zone"], ["create", "--accelerator-type=v5litepod-64"]),
        ("run", ["pod", "zone", "--config=x/y", "--workdir=/mnt/a b"], ["ssh", "--worker=all"]),
        ("logs", ["pod", "zone"], ["ssh", "tail -n 20 ~/mgen.log"]),
        ("delete", ["pod", "zone"], ["delete", "--quiet"]),
    ):
        done, calls = run("tpu_pod.sh", action, *args, fakes=("gcloud",))
        assert done.returncode == 0, done.stderr
        line = " ".join(calls[-1])
        assert "pod" in line and "zone" in line and all(word in line for word in words), line
        if action == "run":  # quoted for the shell over there
            assert r"mgen train --config=x/y --workdir=/mnt/a\ b" in line and "nohup" in line
    for args in ([], ["create", "pod", "type"], ["run", "pod", "zone"], ["dance", "pod", "zone"]):
        done, _ = run("tpu_pod.sh", *args, fakes=("gcloud",))
        assert done.returncode == 1 and "tpu_pod.sh create" in done.stderr


def test_tpu_pod_copies_what_is_committed_and_installs_it(run):
    done, calls = run("tpu_pod.sh", "copy", "pod", "zone", fakes=("gcloud",))
    assert done.returncode == 0, done.stderr
    copied, installed = (" ".join(call) for call in calls)
    assert "scp" in copied and "mgen.tar.gz pod:mgen.tar.gz" in copied
    assert "requirements.lock" in installed and "[data,tpu]" in installed


def test_jobset_is_of_its_schema():
    """What https://jobset.sigs.k8s.io and batch/v1 require; a pod for each host of the slice."""
    job = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())
    assert job["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and job["kind"] == "JobSet"
    assert job["spec"].keys() <= {"failurePolicy", "replicatedJobs", "network", "successPolicy"}
    (slices,) = job["spec"]["replicatedJobs"]
    spec = slices["template"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")
    (container,) = pod["containers"]
    command = container["command"]
    assert command[:2] == ["mgen", "train"] and all(arg.startswith("--") for arg in command[2:])
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(shape[0]) * int(shape[1])
    per_host = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert spec["parallelism"] == spec["completions"] == chips // per_host
    # Kubernetes starts again what fails, not what ends well after SIGTERM.
    assert "--stopped_code=143" in command and job["spec"]["failurePolicy"]["maxRestarts"] > 0
    (mesh,) = (arg for arg in command if arg.startswith("--config.train.mesh="))
    assert f"data={slices['replicas']}," in mesh
