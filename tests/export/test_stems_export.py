"""Models over stems as programs for others: one window taken apart, or made from nothing."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mgen.export import artefact, saved_model
from mgen.export.stem_signatures import of_stems
from mgen.stems.latent_sample import LatentStems
from mgen.stems.sample import FrozenSeparator, FrozenStems
from mgen.stems.separating import keys_of
from mgen.stems.settings import Gaussian, SamplingConfig

FEW = SamplingConfig(steps=3, sigma_min=1e-2, sigma_max=1.0)
CLIENT = Path(__file__).with_name("tensorflow_client.py")


@pytest.fixture(scope="module")
def models(untrained):
    def load(name):
        task, state = untrained(f"stems.{name}")
        kind = FrozenSeparator if name == "tiny_separator" else FrozenStems
        return kind.from_trained(task.config, state.params, state.variables)

    task, state = untrained("stems.tiny_latent")
    codec = {"codec": task.codec.init_variables(jax.random.key(1))}
    variables = state.variables | codec
    latent = LatentStems.from_trained(
        task.config, state.params, variables, task.codec.autoencoder()
    )
    return {
        "joint": (load("tiny_msdm"), dict(likelihood=Gaussian(), sampling=FEW)),
        "separator": (load("tiny_separator"), {}),
        "latent": (latent, dict(sampling=FEW)),
    }


def inputs_of(model, batch):
    rng = np.random.default_rng(batch)
    mix = {"mix": rng.normal(scale=0.1, size=(batch, model.samples, model.channels)).astype("f")}
    if isinstance(model, FrozenSeparator):
        return {"separate": mix}
    places = {"seed": np.arange(batch, dtype="i"), "first": 3 + np.arange(batch, dtype="i")}
    return {"separate": mix | places, "generate": places}


def expected(model, inputs, settings):
    if "mix" not in inputs:
        return model.generate_windows(keys_of(inputs["seed"]), inputs["first"])
    batch = len(inputs["mix"])
    places = (inputs.get(name, np.zeros(batch, "i")) for name in ("seed", "first"))
    seed, first = places
    return model.separate_windows(inputs["mix"][:, None], keys_of(seed), first, **settings)


@pytest.mark.tf
@pytest.mark.parametrize("name", ["joint", "separator", "latent"])
def test_exported_functions_equal_the_models_in_both_formats(models, name, tmp_path):
    model, settings = models[name]
    functions = of_stems(model, "f" * 64, **settings)
    out, batches = tmp_path / "out", (1, 2)
    about = artefact.write(artefact.Job(out=out), functions)
    assert about["models"]["stems"]["window"] == model.samples
    cases = [inputs_of(model, batch) for batch in batches]
    flat = {
        f"{index}|{signature}|{key}": array
        for index, case in enumerate(cases)
        for signature, arrays in case.items()
        for key, array in arrays.items()
    }
    np.savez(tmp_path / "inputs.npz", **flat)
    paths = (out / saved_model.FOLDER, tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    done = subprocess.run([sys.executable, CLIENT, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, loaded = np.load(tmp_path / "outputs.npz", allow_pickle=False), artefact.load(out)
    # Sampling in float32 by another compiler: within 1e-4 of stems of 0.1.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4)
    for index, case in enumerate(cases):
        for signature, arrays in case.items():
            stems = np.asarray(expected(model, arrays, settings))
            assert stems.shape[1] == len(model.names) and np.abs(stems).max() > 1e-3
            close(found[f"{index}|{signature}|stems"], stems)
            close(loaded[signature](**arrays)["stems"], stems)


def test_windows_of_a_song_join_as_the_model_joins_them(models, tmp_path):
    model, settings = models["joint"]
    out = tmp_path / "out"
    artefact.write(
        artefact.Job(out=out, formats=("jax_export",), platforms=("cpu",)),
        of_stems(model, "f" * 64, **settings),
    )
    separate = artefact.load(out)["separate"]
    mix = (
        np.random.default_rng(0).normal(scale=0.1, size=(1, model.samples * 7 // 4, 1)).astype("f")
    )
    whole = model.separate(mix, seeds=[5], **settings)
    begin = model.samples * 3 // 4  # of the second window: a quarter is faded
    window = np.pad(mix, ((0, 0), (0, begin + model.samples - mix.shape[1]), (0, 0)))[:, begin:]
    places = dict(seed=np.asarray([5], "i"), first=np.asarray([begin // model.hop], "i"))
    own = separate(mix=window, **places)["stems"]
    np.testing.assert_allclose(
        own[:, :, model.samples // 4 :], whole[:, :, model.samples :], rtol=0, atol=1e-4
    )
