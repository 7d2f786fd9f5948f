"""The codec as one module: shapes, lengths, bottlenecks, randomness, training signals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.codec.config import CodecConfig
from mgen.codec.fold import fold_weight_norm, unfold_weight_norm
from mgen.codec.model import Codec

TINY = CodecConfig(
    sample_rate=1000,
    filters=2,
    strides=(5,),
    latent_dim=4,
    num_codebooks=2,
    codebook_size=8,
    codebook_dim=3,
    kmeans_iterations=2,
    compress=1,
)
BOTTLENECKS = ("rvq", "factorized_rvq", "vae", "none")


def audio(length=93, batch=2, channels=1):
    rng = np.random.default_rng(0)
    return jnp.asarray(0.3 * rng.standard_normal((batch, length, channels)), jnp.float32)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_a_training_pass(bottleneck, random_variables):
    """Output as long as the input, finite, with a gradient for every parameter that the bottleneck
    lets through.
    """
    config = TINY.replace(bottleneck=bottleneck, quantizer_dropout=1.0, activation="snake_beta")
    variables = dict(random_variables(config))
    params = variables.pop("params")
    names = ("codebook", "dropout", "sample")
    rngs = dict(zip(names, jax.random.split(jax.random.key(1), 3)))

    @jax.jit
    def loss(params):
        out, changed = Codec(config).apply(
            {"params": params, **variables}, audio(), True, rngs=rngs, mutable=["codebook"]
        )
        value = jnp.mean(jnp.abs(out.audio - audio())) + out.commitment + out.codebook_loss
        return value + out.kl, (out, changed)

    (value, (out, changed)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    assert np.isfinite(value)
    assert out.audio.shape == (2, 93, 1)
    assert out.latents.shape == out.quantized.shape == (2, 19, 4)
    assert out.codes.shape == (2, 19, 2 if config.has_codes else 0)
    assert bool(changed) == (bottleneck == "rvq")
    assert (float(out.kl) > 0) == (bottleneck == "vae")
    assert (float(out.commitment) > 0) == config.has_codes
    assert (float(out.codebook_loss) > 0) == (bottleneck == "factorized_rvq")
    if config.has_codes:
        assert all(out.extras[k].shape == (2,) for k in ("perplexity", "dead_codes"))
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        assert float(jnp.max(jnp.abs(gradient))) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "config", [TINY, TINY.replace(causal=True, pad_mode="reflect", align_input=False)]
)
def test_the_pass_is_its_parts(config, random_variables, run):
    variables, x = random_variables(config), audio()
    out = run(config, variables, x)
    latents = run(config, variables, x, method="encode")
    codes = run(config, variables, latents, method="quantize")
    again = run(config, variables, codes, method="dequantize")
    decoded = run(config, variables, again, method="decode")
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.quantized, again, atol=1e-6)
    assert decoded.shape == (2, 95, 1)
    np.testing.assert_allclose(out.audio, decoded[:, :93], atol=1e-5)


def test_an_example_does_not_depend_on_its_batch_mates(random_variables, run):
    config = TINY.replace(norm="time_group", normalize=True, lstm_layers=1)
    variables = random_variables(config)
    together = run(config, variables, audio(batch=3))
    alone = run(config, variables, audio(batch=3)[1:2])
    np.testing.assert_allclose(together.audio[1:2], alone.audio, atol=1e-5)
    np.testing.assert_array_equal(together.codes[1:2], alone.codes)


def test_normalising_makes_the_codes_blind_to_the_level(random_variables, run):
    config = TINY.replace(normalize=True)
    variables = random_variables(config)
    quiet, loud = (run(config, variables, gain * audio()) for gain in (0.1, 1.0))
    np.testing.assert_array_equal(quiet.codes, loud.codes)
    np.testing.assert_allclose(10.0 * quiet.audio, loud.audio, rtol=1e-3, atol=1e-5)


def test_odd_strides_without_output_padding_end_in_zeros(random_variables, run):
    config = TINY.replace(output_padding=False)
    decoded = run(config, random_variables(config), jnp.ones((1, 6, 4)), method="decode")
    assert decoded.shape == (1, 30, 1)
    assert decoded[0, -1, 0] == 0 and decoded[0, -2, 0] != 0


@pytest.mark.parametrize("bottleneck", ["rvq", "factorized_rvq"])
def test_folding_weight_norm_changes_nothing(bottleneck, random_variables, run):
    config = TINY.replace(bottleneck=bottleneck, lstm_layers=1, conv_shortcut=True)
    variables = dict(random_variables(config))
    params = variables.pop("params")
    folded_config, folded = fold_weight_norm(config, params)
    assert folded_config.norm == "none"
    assert not [p for p, _ in jax.tree_util.tree_leaves_with_path(folded) if "scale" in p[-1].key]
    before = run(config, {"params": params, **variables}, audio()).audio
    assert float(jnp.std(before)) > 0.01
    after = run(folded_config, {"params": folded, **variables}, audio()).audio
    np.testing.assert_allclose(before, after, atol=1e-5)

    back_config, back = unfold_weight_norm(folded_config, folded)
    assert back_config == config and jax.tree.structure(back) == jax.tree.structure(params)
    again = run(config, {"params": back, **variables}, audio()).audio
    np.testing.assert_allclose(before, again, atol=1e-5)


def test_codes_are_refused_where_there_are_none(random_variables, run):
    config = TINY.replace(bottleneck="vae")
    with pytest.raises(ValueError, match="bottleneck 'vae' has no codes"):
        run(config, random_variables(config), jnp.zeros((1, 3, 4)), method="quantize")
    with pytest.raises(ValueError, match="codes have 3 levels, expected 1 to 2"):
        codes = jnp.zeros((1, 3, 3), jnp.int32)
        run(TINY, random_variables(TINY), codes, method="dequantize")


def test_bfloat16_stays_near_float32(random_variables, run):
    config = TINY.replace(bottleneck="none", lstm_layers=1)
    variables = random_variables(config)
    exact = run(config, variables, audio()).audio
    coarse = run(config.replace(dtype="bfloat16"), variables, audio()).audio
    assert coarse.dtype == jnp.float32
    # bfloat16 keeps 8 bits; a dozen layers lose a few of them.
    largest = float(jnp.max(jnp.abs(exact)))
    assert 0 < float(jnp.max(jnp.abs(exact - coarse))) < 0.1 * largest
