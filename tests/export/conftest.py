"""Tiny untrained models, and one export of all of them."""

import dataclasses
import importlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import hierarchy_base
from mgen.codec.sample import FrozenCodec
from mgen.export import artefact, signatures
from mgen.joint.sample import FrozenJoint
from mgen.lm import stages
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import Directions, FrozenStage, Timeline
from mgen.train import checkpoint

SECONDS, TOP_K = 0.6, 100  # of `generate`


def make_untrained(name, variant="smoke", **model):
    """Task and fresh state of a shipped config's smoke size, with more fields of its model."""
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    with config.unlocked():
        config.model.update(model)
    task = checkpoint.make_task(config)
    return task, jax.jit(task.init)(jax.random.key(0))


def frozen(name, cls, variant="smoke", **model):
    task, state = make_untrained(name, variant, **model)
    return cls.from_trained(task.config, task.generator_params(state), state.variables)


@pytest.fixture(scope="session")
def untrained():
    return make_untrained


@pytest.fixture(scope="session")
def mgen():
    """`mgen <args>` in a process of its own."""

    def run(*args, check=True):
        command = [sys.executable, "-m", "mgen.cli", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def codec():
    return frozen("codec.tiny_16khz", FrozenCodec)


@pytest.fixture(scope="session")
def joint():
    return frozen("joint.tiny_mulan", FrozenJoint)


@pytest.fixture(scope="session")
def lms(joint):
    """Text and classes to semantic tokens, in two windows, and those and the text to all levels of
    the codec by a masked model."""
    classes = hierarchy_base.CLASSES
    semantic = frozen("hierarchy.tiny_musiclm", FrozenStage, "semantic,smoke", **classes)
    shape = (*semantic.codebook.shape[:2], joint.config.embed_dim)
    codebook = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    semantic = dataclasses.replace(semantic, codebook=codebook, seconds=SECONDS / 1.5)
    return semantic, frozen("hierarchy.tiny_soundstorm", FrozenStage)


@pytest.fixture(scope="session")
def functions(codec, joint, lms):
    """Signatures of all models."""
    weights = signatures.joint_model(joint, "j" * 64)
    sampling = [SamplingConfig(top_k=TOP_K)] * 2
    return [
        *signatures.of_codec(codec, "c" * 64, 1.0),
        *signatures.of_joint(joint, weights),
        signatures.of_chain(lms, ("l" * 64, "s" * 64), SECONDS, sampling, {}, (joint, weights)),
    ]


@pytest.fixture(scope="session")
def exported(functions, tmp_path_factory):
    """Folder with the `jax_export` format of all models."""
    out = tmp_path_factory.mktemp("exported") / "programs"
    artefact.write(artefact.Job(out=out, formats=("jax_export",)), functions)
    return out


def make_inputs(codec, joint, fields, batch):
    """Inputs of every signature, {"encode": {"audio": ...}}; lengths depend on the batch."""
    rng = np.random.default_rng(batch)
    c, j = codec.config, joint.config
    frames = 4 + 3 * batch

    def audio(samples, channels):
        return 0.1 * rng.standard_normal((batch, samples, channels), np.float32)

    ids = rng.integers(0, j.text.vocab_size, (batch, j.text_length), np.int32)
    tokens = rng.integers(1, j.text_length, (batch, 1))
    text = {"ids": ids, "mask": np.arange(j.text_length)[None] < tokens}
    codes = rng.integers(0, c.codebook_size, (batch, frames, c.num_codebooks), np.int32)
    return {
        "encode": {"audio": audio(frames * c.hop, c.channels)},
        "decode": {"codes": codes},
        "embed_audio": {"audio": audio(j.samples, j.channels)},
        "embed_text": text,
        "generate": {
            "seed": np.arange(batch, dtype=np.int32) + batch,
            **text,
            "attributes": np.stack([rng.integers(0, n, batch, np.int32) for n in fields], axis=1),
            "temperature": np.asarray([0.9, 0.7], np.float32),
            "guidance": np.float32(1 + batch),
        },
    }


@pytest.fixture(scope="session")
def cases(codec, joint, lms):
    """Inputs and what the models themselves give for them, for two batch sizes."""

    def windows(audio):
        return np.stack([joint.window_embeddings(clip)[0] for clip in audio])

    def generated(seed, ids, mask, attributes, temperature, guidance):
        text = {"joint_embedding": joint.embed_text(ids, mask)[:, None]}
        told = Directions(((0.0, text),), attributes)
        lines = []
        for stage, heat in zip(lms, temperature):
            own = SamplingConfig(temperature=float(heat), guidance=float(guidance), top_k=TOP_K)
            lines.append(Timeline(stage, SECONDS, seed, told, own))
        *_, streams = stages.run(lines)
        return {"semantic": streams["semantic"], "codes": streams["acoustic"]}

    def case(batch):
        inputs = make_inputs(codec, joint, lms[0].lm.config.attribute_sizes, batch)
        outputs = {
            "encode": {"codes": codec.encode(**inputs["encode"])},
            "decode": {"audio": codec.decode(**inputs["decode"])},
            "embed_audio": {"embedding": windows(**inputs["embed_audio"])},
            "embed_text": {"embedding": joint.embed_text(**inputs["embed_text"])},
            "generate": generated(**inputs["generate"]),
        }
        return SimpleNamespace(inputs=inputs, outputs=jax.tree.map(np.asarray, outputs))

    return [case(1), case(3)]


@pytest.fixture(scope="session")
def equal():
    """Asserts that what was found is what was expected."""
    return assert_equal


def assert_equal(found, expected):
    """Codes are identical: a program of another compiler rounds otherwise by 1e-6, and two codes of
    random weights lie further apart than that. Floats within 1e-4."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if value.dtype == np.int32:
            np.testing.assert_array_equal(found[name], value)
        else:
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4)
