"""Residual vector quantisers: nearest codes, EMA statistics, dead codes, dropout, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.codec import quantize
from mgen.codec.config import CodecConfig
from mgen.codec.quantize import FactorizedRVQ, ResidualVQ

CONFIG = CodecConfig(sample_rate=1000, latent_dim=6, num_codebooks=3, codebook_size=16)
KEY = jax.random.key(0)


def latents(seed=0, batch=4, frames=40):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((batch, frames, CONFIG.latent_dim)), jnp.float32)


def train_step(config, variables, z, key=KEY, num_codebooks=None):
    return ResidualVQ(config).apply(
        variables, z, True, num_codebooks, rngs={"codebook": key}, mutable=["codebook"]
    )


@pytest.fixture(scope="module")
def trained():
    """Codebooks after the first batch, and what the quantiser said of it."""
    variables = ResidualVQ(CONFIG).init(KEY, latents(), False)
    out, changed = jax.jit(lambda v, z: train_step(CONFIG, v, z))(variables, latents())
    return changed, out


def test_codes_are_the_nearest_ones_level_by_level(trained):
    variables, _ = trained
    z = latents(1)
    codes = np.asarray(ResidualVQ(CONFIG).apply(variables, z, method="encode"))
    residual = np.asarray(z)
    for k, book in enumerate(np.asarray(variables["codebook"]["embedding"])):
        distances = np.sum((residual[..., None, :] - book) ** 2, -1)
        np.testing.assert_array_equal(codes[..., k], np.argmin(distances, -1))
        residual = residual - book[codes[..., k]]
    decoded = ResidualVQ(CONFIG).apply(variables, codes, method="decode")
    np.testing.assert_allclose(decoded, z - residual, atol=1e-5)


def test_any_number_of_levels(trained):
    variables, _ = trained
    z = latents(1)
    model = ResidualVQ(CONFIG)
    codes = model.apply(variables, z, method="encode")
    errors = []
    for k in (1, 2, 3):
        np.testing.assert_array_equal(model.apply(variables, z, k, method="encode"), codes[..., :k])
        decoded = model.apply(variables, codes[..., :k], method="decode")
        errors.append(float(jnp.mean((z - decoded) ** 2)))
    assert errors[0] > errors[1] > errors[2]


def test_first_batch_initialises_by_kmeans():
    # Three tight clusters and three codes: k-means of the first level finds their means.
    rng = np.random.default_rng(0)
    centres = 10.0 * np.eye(3, CONFIG.latent_dim)
    z = np.repeat(centres, 20, 0) + 0.01 * rng.standard_normal((60, CONFIG.latent_dim))
    config = CONFIG.replace(codebook_size=3, num_codebooks=1, kmeans_iterations=20)
    z = jnp.asarray(rng.permutation(z)[None], jnp.float32)
    variables = ResidualVQ(config).init(KEY, z, False)
    assert not variables["codebook"]["initialized"]
    out, _ = train_step(config, variables, z, jax.random.key(1))
    assert float(out.stats["quantization_error"][0]) < 1e-3
    assert float(out.stats["perplexity"][0]) == pytest.approx(3.0, rel=1e-3)


def test_kmeans_with_fewer_rows_than_centroids():
    x = latents(batch=1, frames=5)[0]
    centroids, members = quantize.kmeans(KEY, x, 16, 5)
    assert centroids.shape == (16, CONFIG.latent_dim) and float(jnp.sum(members)) == 5.0
    assert np.all(np.isfinite(centroids))


def test_ema_moves_codebooks_to_the_means_of_what_they_are_given(trained):
    variables, _ = trained
    config = CONFIG.replace(dead_code_threshold=0.0)
    z = latents(2)
    _, changed = train_step(config, variables, z)
    before, after = variables["codebook"], changed["codebook"]
    codes = np.asarray(ResidualVQ(config).apply(variables, z, method="encode"))[..., 0].ravel()
    rows, d = np.asarray(z).reshape(-1, CONFIG.latent_dim), config.ema_decay
    count = np.bincount(codes, minlength=16)
    sums = np.zeros((16, CONFIG.latent_dim))
    np.add.at(sums, codes, rows)
    cluster = d * before["cluster_size"][0] + (1 - d) * count
    total = d * before["embedding_sum"][0] + (1 - d) * sums
    np.testing.assert_allclose(after["cluster_size"][0], cluster, rtol=1e-5)
    # Laplace smoothing shifts the quotient by about V 1e-5 / total.
    np.testing.assert_allclose(
        after["embedding"][0], total / cluster[:, None], rtol=1e-3, atol=1e-4
    )


def test_dead_codes_are_replaced_by_vectors_of_the_batch(trained):
    variables = jax.tree.map(jnp.array, trained[0])
    book = variables["codebook"]
    book["embedding"] = book["embedding"].at[0, 5].set(100.0)
    book["embedding_sum"] = book["embedding_sum"].at[0, 5].set(0.0)
    book["cluster_size"] = book["cluster_size"].at[0, 5].set(0.0)
    z = latents(3)
    out, changed = train_step(CONFIG, variables, z)
    assert float(out.stats["dead_codes"][0]) >= 1 / 16
    replaced = changed["codebook"]["embedding"][0, 5]
    assert np.min(np.max(np.abs(z.reshape(-1, CONFIG.latent_dim) - replaced[None]), -1)) < 1e-6
    # Replaced ones start with average usage: they are not dead at once again.
    sizes = changed["codebook"]["cluster_size"][0]
    assert float(sizes[5]) >= CONFIG.dead_code_threshold * float(jnp.mean(sizes))


def test_evaluation_changes_nothing_and_needs_no_key(trained):
    variables, _ = trained
    out = ResidualVQ(CONFIG).apply(variables, latents(1), False)
    codes = ResidualVQ(CONFIG).apply(variables, latents(1), method="encode")
    np.testing.assert_array_equal(out.codes, codes)


@pytest.mark.parametrize("quantizer", [ResidualVQ, FactorizedRVQ])
def test_each_example_uses_its_number_of_codebooks(trained, quantizer):
    z, model = latents(1), quantizer(CONFIG)
    variables = trained[0] if quantizer is ResidualVQ else model.init(KEY, z, False)
    counts = jnp.array([1, 2, 3, 2])
    out = jax.jit(lambda v, z, n: model.apply(v, z, False, n))(variables, z, counts)
    assert out.codes.shape[-1] == 3
    decode = jax.jit(lambda v, codes: model.apply(v, codes, method="decode"))
    for i, k in enumerate(counts):
        alone = decode(variables, out.codes[i : i + 1, :, : int(k)])
        np.testing.assert_allclose(out.latents[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("quantizer", [ResidualVQ, FactorizedRVQ])
def test_unused_levels_cost_nothing(trained, quantizer):
    z, model = latents(1), quantizer(CONFIG)
    variables = trained[0] if quantizer is ResidualVQ else model.init(KEY, z, False)
    one = model.apply(variables, z, False, jnp.ones(4, jnp.int32))
    residual = z - model.apply(variables, one.codes[..., :1], method="decode")
    if quantizer is ResidualVQ:
        np.testing.assert_allclose(one.commitment, jnp.mean(residual**2), rtol=1e-4)
    else:
        three = model.apply(variables, z, False)
        assert float(one.commitment) < float(three.commitment)


def test_dropout_draws_from_the_choices_by_its_probability():
    config = CONFIG.replace(num_codebooks=8, quantizer_dropout=0.5, dropout_choices=(2, 4))
    drawn = np.asarray(quantize.draw_num_codebooks(KEY, config, 4000))
    share = {k: float(np.mean(drawn == k)) for k in (2, 4, 8)}
    # Four standard deviations of 4000 draws are under 0.032.
    assert share == pytest.approx({2: 0.25, 4: 0.25, 8: 0.5}, abs=0.032)
    # An example's draw does not depend on how many there are.
    np.testing.assert_array_equal(quantize.draw_num_codebooks(KEY, config, 7), drawn[:7])


def test_gradients_pass_straight_through(trained):
    variables, _ = trained
    z, weights = latents(1), latents(9)

    def decoded(z):
        return jnp.sum(weights * ResidualVQ(CONFIG).apply(variables, z, False).latents)

    np.testing.assert_allclose(jax.grad(decoded)(z), weights, atol=1e-6)

    def commitment(z):
        return ResidualVQ(CONFIG).apply(variables, z, False).commitment

    out = ResidualVQ(CONFIG).apply(variables, z, False)
    residuals = [
        z - ResidualVQ(CONFIG).apply(variables, out.codes[..., :k], method="decode")
        for k in (1, 2, 3)
    ]
    expected = 2.0 * sum(residuals) / (3 * z.size)
    np.testing.assert_allclose(jax.grad(commitment)(z), expected, atol=1e-7)


def test_factorized_gradients_reach_every_parameter():
    z, model = latents(1), FactorizedRVQ(CONFIG.replace(norm="weight"))
    variables = model.init(KEY, z, False)

    def loss(params):
        out = model.apply({"params": params}, z, True)
        return jnp.sum(out.latents**2) + out.commitment + out.codebook_loss

    for path, gradient in jax.tree_util.tree_leaves_with_path(
        jax.jit(jax.grad(loss))(variables["params"])
    ):
        assert float(jnp.max(jnp.abs(gradient))) > 0, path


def test_perplexity_counts_codes_in_use():
    assert float(quantize.perplexity(jnp.ones(64))) == pytest.approx(64.0, rel=1e-4)
    assert float(quantize.perplexity(jnp.zeros(64).at[3].set(9.0))) == pytest.approx(1.0)
    assert float(quantize.perplexity(jnp.zeros(64))) == pytest.approx(1.0)


def test_a_sharded_batch_gives_global_statistics(trained):
    """Under jit the codebooks see the whole batch, on however many devices it lies."""
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    z = latents(4, batch=4 * len(devices))
    _, alone = train_step(CONFIG, trained[0], z)
    step = jax.jit(lambda v, z: train_step(CONFIG, v, z), in_shardings=(None, sharding))
    _, spread = step(trained[0], jax.device_put(z, sharding))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
