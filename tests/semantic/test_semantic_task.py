"""The task: learning a batch, metrics, codebooks from a file, baselines, published sizes."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.kmeans import Codebook
from mgen.semantic import targets
from mgen.semantic.task import Task

TINY = ("tiny_w2vbert", "tiny_mert", "tiny_muq")


def config_of(name, arg=""):
    return importlib.import_module(f"configs.semantic.{name}").get_config(arg)


def random_batch(task, seed=0):
    rng = np.random.default_rng(seed)
    spec = task.batch_spec(task.config.data.batch_size)
    batch = {"audio": rng.normal(size=spec["audio"].shape).astype(np.float32)}
    if "codes" in spec:
        batch["codes"] = rng.integers(0, 3, spec["codes"].shape).astype(np.int32)
    return jax.tree.map(jnp.asarray, batch)


def start(task, tmp_path):
    if task.target_config.kind == "mel_rvq":
        frozen = targets.init_variables(task.semantic_config, task.target_config)
        rng = np.random.default_rng(0)
        vectors = rng.normal(size=frozen["codebook"].shape).astype(np.float32)
        Codebook(vectors).save(tmp_path / "book")
        task.config.targets.codebook = str(tmp_path / "book")
        task = Task(task.config)
    return task, task.warm_start(jax.jit(task.init)(jax.random.key(0)))


@pytest.mark.parametrize("name", TINY)
def test_smoke_config_learns_a_batch(name, tmp_path):
    config = config_of(name, "smoke")
    config.optim.update(learning_rate=3e-3, schedule="constant", warmup=0)
    task, state = start(Task(config), tmp_path)
    batch = random_batch(task)
    step = jax.jit(task.train_step)
    frozen = state.variables.get("targets")
    losses = []
    for _ in range(40):
        # One mask: what is to be learned stays.
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert abs(float(metrics["masked"]) - config.masking.probability) < 0.4
    assert losses[-1] < 0.7 * losses[0]
    size = config.targets.codebooks
    assert {f"accuracy_{k}" for k in range(size)} < set(metrics)
    assert 1 <= metrics["target_perplexity_min"] <= metrics["target_perplexity"]
    assert ("cqt_explained" in metrics) == (task.target_config.cqt_bins > 0)
    assert ("cross_entropy_visible" in metrics) == (config.loss.visible > 0)
    if frozen is not None:
        jax.tree.map(np.testing.assert_array_equal, frozen, state.variables["targets"])
    evaluate = jax.jit(task.eval_step)
    held_out = [evaluate(state, batch, jax.random.key(0)) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *held_out)


def test_codebooks_come_from_the_file(tmp_path):
    task, state = start(Task(config_of("tiny_muq", "smoke")), tmp_path)
    vectors = Codebook.load(tmp_path / "book").vectors
    np.testing.assert_array_equal(state.variables["targets"]["codebook"], vectors)
    task.config.targets.codebook = ""
    with pytest.raises(UserError, match=r"targets.codebook is empty"):
        Task(task.config).warm_start(state)


def test_targets_do_not_depend_on_masking():
    """Other keys, other masks: the same codes, told by what stays the same in the metrics."""
    task = Task(config_of("tiny_w2vbert", "smoke"))
    state = jax.jit(task.init)(jax.random.key(0))
    batch = random_batch(task)
    loss = jax.jit(lambda key: task.loss(state.params, state.variables, batch, key, True)[1][0])
    one, other = loss(jax.random.key(1)), loss(jax.random.key(2))
    assert one["cross_entropy"] != other["cross_entropy"]
    assert one["target_perplexity"] == other["target_perplexity"]


def test_noise_mixture_is_of_training_and_of_the_input_only():
    config = config_of("tiny_mert", "smoke")
    config.masking.noise_mix = 1.0
    task, plain = Task(config), Task(config_of("tiny_mert", "smoke"))
    state = jax.jit(task.init)(jax.random.key(0))
    batch = random_batch(task)

    def run(task, train):
        return task.loss(state.params, state.variables, batch, jax.random.key(1), train)[0]

    assert run(task, False) == run(plain, False) == run(plain, True) != run(task, True)


@pytest.mark.parametrize("name", TINY)
def test_baseline_is_the_unigram_loss(name, tmp_path):
    task, state = start(Task(config_of(name, "smoke")), tmp_path)
    batches = [random_batch(task, seed) for seed in (0, 1)]
    found = task.baseline(iter(batches), iter(batches))
    frozen = state.variables.get("targets", {})
    codes = np.concatenate(
        [
            targets.codes(task.semantic_config, task.target_config, frozen, batch)
            for batch in batches
        ]
    )
    size, nats = task.target_config.codebook_size, []
    for k in range(codes.shape[2]):
        counts = np.bincount(codes[..., k].ravel(), minlength=size)
        share = (counts + 1) / (counts + 1).sum()
        nats.append(-np.log(share[codes[..., k]]).mean())
    np.testing.assert_allclose(found["unigram_cross_entropy"], np.mean(nats), rtol=1e-5)
    if name == "tiny_mert":
        spectra = np.concatenate(
            [
                targets.cqt(task.semantic_config, task.target_config, batch["audio"])
                for batch in batches
            ]
        )
        spread = spectra.var(axis=(0, 1)).mean()
        np.testing.assert_allclose(found["mean_cqt_error"], spread, rtol=1e-3)


def test_collapse_is_reported():
    task = Task(config_of("tiny_w2vbert"))
    assert task.warnings({"target_perplexity_min": 200.0}) == []
    (line,) = task.warnings({"target_perplexity_min": 2.0})
    assert "perplexity 2.0 of at most 512" in line


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("masking.fill", "zeros", "masking.fill is 'zeros'"),
        ("masking.probability", 1.0, "masking.probability is 1.0"),
        ("data.sample_rate", 8000, "data.sample_rate is 8000, expected the model's 16000"),
        ("codec.codebook_size", 64, "codec.codebook_size is 64, expected 512"),
        ("codec.frame_rate", 75.0, "targets.codebooks is 8, expected 12"),
    ],
)
def test_bad_configs_are_refused(path, value, message):
    config = config_of("tiny_mert")
    part, field = path.split(".")
    config[part][field] = value
    with pytest.raises(UserError) as error:
        Task(config)
    assert message in str(error.value)


def test_manifest_and_requirements():
    task = Task(config_of("tiny_mert"))
    assert task.manifest() == dict(
        sample_rate=16000, channels=1, frame_rate=25.0, dim=128, layers=4
    )
    assert task.requires() == {"streams": {"acoustic": task.config.codec.to_dict()}}
    assert Task(config_of("tiny_w2vbert")).requires() == {}


@pytest.mark.parametrize(
    "name, parameters, published, frames",
    [
        ("mert_95m", 94_371_712, 95e6, 374),
        ("mert_330m", 315_438_720, 330e6, 374),
        ("w2vbert_600m", 607_563_136, 600e6, 250),
        ("muq_300m", 316_344_320, 300e6, 750),
    ],
)
def test_full_size_configs(name, parameters, published, frames):
    task = Task(config_of(name))
    variables = jax.eval_shape(task.init_variables, jax.random.key(0))
    count = tree.size(variables["params"]["encoder"])
    assert count == parameters and abs(count / published - 1) < 0.06
    assert task.semantic_config.frames(task.samples) == frames
