"""SavedModels: what a process with TensorFlow and without JAX gets of every signature."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgen import manifest
from mgen.errors import UserError
from mgen.export import artefact, saved_model
from mgen.export.signature import models_of

pytestmark = pytest.mark.tf
CLIENT = Path(__file__).with_name("tensorflow_client.py")


@pytest.fixture(scope="module")
def written(functions, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved") / "all"
    artefact.write(artefact.Job(out=out, formats=("saved_model",)), functions)
    return out


def test_a_process_without_jax_gets_what_the_models_give(written, cases, equal, tmp_path):
    inputs = {
        f"{index}|{signature}|{name}": np.asarray(array)
        for index, case in enumerate(cases)
        for signature, arrays in case.inputs.items()
        for name, array in arrays.items()
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    paths = (written / saved_model.FOLDER, tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    done = subprocess.run([sys.executable, CLIENT, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "outputs.npz", allow_pickle=False)
    for index, case in enumerate(cases):
        for signature, outputs in case.outputs.items():
            equal({name: found[f"{index}|{signature}|{name}"] for name in outputs}, outputs)


def test_weights_are_variables_and_stored_once(written, functions):
    models = models_of(functions)
    size = sum(array.nbytes for model in models for array in model.weights().values())
    folder = written / saved_model.FOLDER
    variables = sum(path.stat().st_size for path in (folder / "variables").iterdir())
    assert size <= variables < size + 100_000
    assert (folder / "saved_model.pb").stat().st_size < size
    assert b"/mgen/" not in (folder / "saved_model.pb").read_bytes()


def test_manifest_and_loader_know_that_there_is_no_jax_export(written):
    about = manifest.read(written)
    assert about["formats"] == ["saved_model"]
    assert about["files"].keys() >= {"saved_model/saved_model.pb"}
    with pytest.raises(UserError, match=r"no jax_export, made with --formats=saved_model"):
        artefact.load(written)
