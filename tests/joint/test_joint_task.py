"""The task: matching pairs are learned, SLAP's target, collapse, accumulation, a mesh."""

import dataclasses
import functools
import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.joint import loss as losses
from mgen.joint.sample import FrozenJoint
from mgen.joint.task import COLLAPSE_STEPS, Task
from mgen.metrics import retrieval

BATCH = 12


def experiment(name, **changes):
    config = importlib.import_module(f"mgen.configs.joint.{name}").get_config("smoke")
    config.optim.update(schedule="constant", warmup=5, learning_rate=5e-3)
    config.model.embed_dim = 16
    config.model.spec_augment.update(time_masks=0, mel_masks=0)
    if config.model.text is not None:
        config.model.text.dropout = 0.0
    if config.model.audio_kind == "vit":
        config.model.audio.patchout = 0.0
    config.data.batch_size = BATCH
    for path, value in changes.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return config


@functools.cache
def compiled(name):
    """Task, initial state and step; one compilation serves several tests."""
    task = Task(experiment(name))
    return task, jax.jit(task.init)(jax.random.key(0)), jax.jit(task.train_step)


def pairs(task, seed=0):
    """A tone of its own and a few words of its own for each example."""
    config, batch = task.joint_config, task.config.data.batch_size
    rng = np.random.default_rng(seed)
    time = np.arange(config.samples) / config.sample_rate
    pitch = 100.0 * 40.0 ** (np.arange(batch) / batch)
    audio = 0.3 * np.sin(2 * np.pi * pitch[:, None] * time[None])
    if config.text is None:
        # The other rendition: softer, an octave added.
        other = 0.5 * audio + 0.1 * np.sin(4 * np.pi * pitch[:, None] * time[None])
        sides = {"audio": audio, "other": other}
        batch = {name: jnp.asarray(x[..., None], jnp.float32) for name, x in sides.items()}
        return batch | {"piece": jnp.arange(len(audio), dtype=jnp.int32)}
    ids = rng.integers(4, config.text.vocab_size, (batch, config.text_length))
    mask = np.arange(config.text_length)[None] < rng.integers(5, 9, batch)[:, None]
    return {
        "audio": jnp.asarray(audio[..., None], jnp.float32),
        "text": jnp.asarray(np.where(mask, ids, 0), jnp.int32),
        "text_mask": jnp.asarray(mask),
    }


@pytest.mark.parametrize("name", ["tiny_mulan", "tiny_clap", "tiny_coca", "tiny_slap"])
def test_matching_pairs_are_learned(name):
    """Twelve pairs: the loss starts near chance and falls far below, retrieval becomes perfect."""
    task, state, step = compiled(name)
    batch, history = pairs(task), []
    for i in range(150):
        before = state
        state, metrics = step(state, batch, jax.random.key(i))
        history.append(metrics)
        if name == "tiny_slap" and 2 < i < 6:  # the first update has learning rate 0
            assert_target_moved(task.config.loss.target_decay, before, state)
    first, last = history[0], history[-1]
    if name != "tiny_slap":
        assert first["matching"] > 0.7 * first["chance"]
        assert last["matching"] < 0.2 * last["chance"] and last["steps_at_chance"] == 0
        assert last["temperature"] != first["temperature"]
    else:
        assert last["inter"] < 0.3 * first["inter"] and last["spread"] > 0.1
    if name == "tiny_coca":
        assert last["caption_cross_entropy"] < 0.5 * first["caption_cross_entropy"]
        assert abs(first["caption_cross_entropy"] - np.log(512)) < 1.0
    assert last["accuracy_audio_to_text"] == last["accuracy_text_to_audio"] == 1
    joint = FrozenJoint.from_trained(task.config, state.inference_params, state.variables)
    audio = np.stack([joint.embed_audio(np.asarray(x)) for x in batch["audio"]])
    text = joint.embed_text(batch["text"], batch["text_mask"])
    found = retrieval.both_ways(audio, text, ks=(1,))
    # Batch norm's running statistics are not quite those of the batch that SLAP was trained on.
    least = 0.9 if name == "tiny_slap" else 1.0
    assert min(found["text_to_audio/recall_at_1"], found["audio_to_text/recall_at_1"]) >= least


def test_melodies_are_learned():
    """Twelve pairs of renditions: both sides through one tower, retrieval becomes perfect."""
    task, state, step = compiled("tiny_melody")
    assert set(state.params) == {"audio_tower", "audio_projection", "scores"}
    batch, history = pairs(task), []
    for i in range(100):
        state, metrics = step(state, batch, jax.random.key(i))
        history.append(metrics)
    first, last = history[0], history[-1]
    assert last["matching"] < 0.2 * task.config.loss.margin < first["matching"]
    assert last["spread"] > 0.1 and last["steps_at_chance"] == 0
    assert last["accuracy_audio_to_other"] == last["accuracy_other_to_audio"] == 1
    assert "temperature" not in last and "chance" not in last
    joint = FrozenJoint.from_trained(task.config, state.inference_params, state.variables)
    sides = [
        np.stack([joint.embed_audio(np.asarray(x)) for x in batch[n]]) for n in ("audio", "other")
    ]
    assert retrieval.retrieval(*sides, ks=(1,))["recall_at_1"] == 1
    # What is heard does not depend on the side that it is on.
    swapped = batch | {"audio": batch["other"], "other": batch["audio"]}
    metrics = [jax.jit(task.eval_step)(state, b, jax.random.key(0)) for b in (batch, swapped)]
    np.testing.assert_allclose(metrics[0]["matching"], metrics[1]["matching"], rtol=1e-5)


def test_renditions_of_one_piece_are_no_negatives():
    task, state, step = compiled("tiny_melody")
    batch = pairs(task)
    one = batch | {"piece": jnp.zeros(BATCH, jnp.int32)}
    matching = [step(state, b, jax.random.key(0))[1]["matching"] for b in (batch, one)]
    assert matching[0] > 0.5 * task.config.loss.margin and matching[1] == 0
    two = batch | {"piece": jnp.arange(BATCH, dtype=jnp.int32) % 2}
    found = task.baseline(iter([]), iter([two]))
    np.testing.assert_allclose(found["chance_loss"], task.config.loss.margin)
    np.testing.assert_allclose(found["chance_accuracy"], 2 / (BATCH + 2), rtol=1e-6)


def test_collapsed_melodies_warn():
    task, state, step = compiled("tiny_melody")
    batch = pairs(task)
    silence = batch | {name: jnp.zeros_like(batch[name]) for name in ("audio", "other")}
    after, metrics = step(state, silence, jax.random.key(0))
    np.testing.assert_allclose(metrics["matching"], task.config.loss.margin, rtol=1e-4)
    assert metrics["steps_at_chance"] == 1 == after.variables["collapse"]["steps"]
    (warning,) = task.warnings({"steps_at_chance": float(COLLAPSE_STEPS)})
    assert warning.startswith("all embeddings have been the same") and "loss.margin" in warning


def assert_target_moved(decay, before, after):
    """target <- decay target + (1 - decay) params, the parameters after the step."""
    target, old = after.variables["target"], before.variables["target"]
    assert set(target) == {"audio_tower", "text_tower", "audio_projection", "text_projection"}
    expected = jax.tree.map(
        lambda z, p: decay * z + (1 - decay) * p, old, {n: after.params[n] for n in target}
    )
    # float32: one rounding of weights of order 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), target, expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), target, old)
    assert max(jax.tree.leaves(moved)) > 1e-6


def test_collapse_is_counted_step_by_step_and_warns():
    """Equal audio and equal text embeddings, by an input and a text table without differences."""
    task, state, step = compiled("tiny_mulan")
    batch = pairs(task)
    stuck = batch | {
        "audio": jnp.tile(batch["audio"][:1], (BATCH, 1, 1)),
        "text_mask": jnp.tile(batch["text_mask"][:1], (BATCH, 1)),
    }
    text_tower = state.params["text_tower"]
    table = {"embedding": jnp.zeros_like(text_tower["tokens"]["embedding"])}
    params = state.params | {"text_tower": text_tower | {"tokens": table}}
    state = dataclasses.replace(state, params=params)
    for i in range(3):
        after, metrics = step(state, stuck, jax.random.key(i))
        assert metrics["steps_at_chance"] == i + 1
        np.testing.assert_allclose(metrics["matching"], np.log(BATCH), rtol=1e-3)
        # Parameters as they were: what training would do here is not asked.
        state = dataclasses.replace(state, variables=after.variables)
    assert not task.warnings({"steps_at_chance": COLLAPSE_STEPS - 1.0})
    (warning,) = task.warnings({"steps_at_chance": float(COLLAPSE_STEPS)})
    assert "within 1% of chance for 200 steps" in warning and "learning_rate" in warning
    # Escaping counts from nothing again.
    state = dataclasses.replace(compiled("tiny_mulan")[1], variables=state.variables)
    metrics = step(state, batch, jax.random.key(9))[1]
    assert abs(metrics["matching"] / np.log(BATCH) - 1) > 0.01
    assert metrics["steps_at_chance"] == 0


def test_equal_captions_are_no_negatives():
    task, state, step = compiled("tiny_mulan")
    batch = pairs(task)
    twice = {n: batch[n].at[1].set(batch[n][0]) for n in ("text", "text_mask")}
    metrics = step(state, batch | twice, jax.random.key(0))[1]
    expected = (2 * np.log(BATCH - 1) + (BATCH - 2) * np.log(BATCH)) / BATCH
    np.testing.assert_allclose(metrics["chance"], expected, rtol=1e-6)
    found = task.baseline(iter([]), iter([batch | twice] * 2))
    np.testing.assert_allclose(found["chance_loss"], expected, rtol=1e-6)
    hits = (2 / (BATCH - 1) + (BATCH - 2) / BATCH) / BATCH
    np.testing.assert_allclose(found["chance_accuracy"], hits, rtol=1e-6)
    plain = Task(experiment("tiny_mulan", loss__mask_duplicates=False))
    found = plain.baseline(iter([]), iter([batch | twice]))
    np.testing.assert_allclose(found["chance_loss"], np.log(BATCH), rtol=1e-6)


def test_negatives_are_those_of_a_micro_batch(monkeypatch):
    task = Task(experiment("tiny_mulan", optim__accumulate=3))
    seen, compare = [], losses.contrastive

    def spy(audio, *rest):
        seen.append(len(audio))
        return compare(audio, *rest)

    monkeypatch.setattr(losses, "contrastive", spy)
    state = jax.eval_shape(task.init, jax.random.key(0))
    jax.eval_shape(task.train_step, state, task.batch_spec(BATCH), jax.random.key(0))
    assert set(seen) == {BATCH // 3}


EIGHT_DEVICES = """
import sys, importlib.util
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec); spec.loader.exec_module(tests)
from mgen.sharding.mesh import make_mesh
from mgen.train.loop import CompiledSteps

task = tests.Task(tests.experiment(
    "tiny_mulan", data__batch_size=16, loss__chunk=1, optim__name="sgd", optim__clip=0.0))
batch = jax.device_get(tests.pairs(task))
results = []
for text in ("data=1", "data=2,fsdp=4"):
    compiled = CompiledSteps(task, make_mesh(text, jax.devices()[:1] if text == "data=1" else None))
    state, data = compiled.init(jax.random.key(0)), compiled.put(batch)
    for step in range(2):
        state, metrics = compiled.train(state, data, compiled.key(jax.random.key(1), step))
    results.append(jax.device_get((state.params, metrics)))
    program = compiled.train.lower(state, data, compiled.key(jax.random.key(1), 0)).as_text()
    assert ("all_gather" in program) == (text != "data=1")
# float32; only the order of the sums differs.
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)
print("equal")
"""


def test_step_on_eight_devices_equals_one():
    """The task finds the mesh of the loop by itself and gathers negatives over it."""
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, __file__], capture_output=True, text=True
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-3000:]


def test_manifest_of_melodies_names_no_text():
    task = Task(experiment("tiny_melody"))
    fields = {"sample_rate": 16000, "channels": 1, "window_seconds": 1.0, "embed_dim": 16}
    assert task.manifest() == fields and task.files() == {}


def test_manifest_says_what_consumers_check():
    assert Task(experiment("tiny_mulan")).manifest() == {
        "sample_rate": 16000,
        "channels": 1,
        "window_seconds": 1.0,
        "embed_dim": 16,
        "text_length": 16,
        "vocab_size": 512,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(loss__kind="hinge"), r"config\.loss\.kind is 'hinge'"),
        (dict(loss__kind="slap"), r"config\.model\.predictor_hidden is 0"),
        (dict(loss__caption_weight=1.0), r"config\.loss\.caption_weight is 1\.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Task(experiment("tiny_mulan", **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(loss__kind="slap"), r"config\.model\.predictor_hidden is 0"),
        (dict(model__predictor_hidden=8), r"model\.predictor_hidden is 8, expected 0 without a te"),
        (dict(model__decoder_layers=1), r"model\.decoder_layers is 1, expected 0 without a text"),
    ],
)
def test_text_is_needed_for_some(change, message):
    with pytest.raises(UserError, match=message):
        Task(experiment("tiny_melody", **change))
