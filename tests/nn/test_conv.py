"""Convolutions, their padding laws, and the streaming contract of every layer of a codec."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.nn.activations import NAMES, Activation
from mgen.nn.conv import Conv1d, ConvTranspose1d, pad_time
from mgen.nn.norm import TimeGroupNorm, weight_norm
from mgen.nn.recurrent import ResidualLSTM
from mgen.nn.streaming import run_stream, verify_streaming

RNG = np.random.default_rng(0)


def noise(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def variables_of(layer, x):
    """Parameters of order one, so that errors of 1e-5 are small and mistakes are not."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    return jax.tree.map(lambda s: 0.5 * noise(*s.shape), shapes)


def direct_conv(x, kernel, stride, dilation):
    """The definition: y[n] = sum_k x[n stride + k dilation] w[k]."""
    count = (x.shape[1] - (kernel.shape[0] - 1) * dilation - 1) // stride + 1
    rows = [
        sum(x[:, n * stride + k * dilation] @ kernel[k] for k in range(kernel.shape[0]))
        for n in range(count)
    ]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(7, 1, 1), (3, 1, 4), (6, 3, 1)])
def test_conv_is_its_definition(kernel_size, stride, dilation, causal):
    x = noise(2, 17, 3)
    layer = Conv1d(3, 4, kernel_size, stride, dilation, causal=causal)
    variables = variables_of(layer, x)
    total = (kernel_size - 1) * dilation + 1 - stride
    right = 0 if causal else total // 2
    padded = np.pad(x, ((0, 0), (total - right, right + -17 % stride), (0, 0)))
    params = jax.tree.map(np.asarray, variables["params"])
    expected = direct_conv(padded, params["kernel"], stride, dilation) + params["bias"]
    found = layer.apply(variables, x)
    assert found.shape[1] == -(-17 // stride)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (6, 3), (7, 3), (3, 3)])
def test_transposed_conv_is_the_adjoint_of_a_strided_one(kernel_size, stride):
    x = noise(2, 6, 3)
    layer = ConvTranspose1d(3, 4, kernel_size, stride)
    variables = variables_of(layer, x)
    params = jax.tree.map(np.asarray, variables["params"])
    full = np.zeros((2, 5 * stride + kernel_size, 4), np.float32)
    for j in range(6):
        for k in range(kernel_size):
            full[:, j * stride + k] += x[:, j] @ params["kernel"][k]
    right = (kernel_size - stride) // 2
    left = kernel_size - stride - right
    expected = full[:, left : full.shape[1] - right] + params["bias"]
    found = layer.apply(variables, x)
    assert found.shape[1] == 6 * stride
    np.testing.assert_allclose(found, expected, atol=1e-4)
    short = ConvTranspose1d(3, 4, kernel_size, stride, output_padding=False)
    lost = (kernel_size - stride) % 2
    np.testing.assert_allclose(
        short.apply(variables, x), expected[:, : 6 * stride - lost], atol=1e-4
    )


def test_reflection_leaves_out_the_edge_and_fills_short_input_by_zeros():
    x = jnp.arange(1.0, 6.0)[None, :, None]
    assert pad_time(x, 2, 1, "reflect")[0, :, 0].tolist() == [3, 2, 1, 2, 3, 4, 5, 4]
    # [1, 2] becomes [1, 2, 0, 0], mirrored by 3 on the left; then the two zeros go.
    assert pad_time(x[:, :2], 3, 0, "reflect")[0, :, 0].tolist() == [0, 0, 2, 1, 2]


def test_weight_norm_sets_the_length_of_each_output_kernel():
    x = noise(1, 9, 3)
    layer = Conv1d(3, 4, 5, norm="weight")
    variables = layer.init(jax.random.key(0), x)
    plain = {"params": {k: v for k, v in variables["params"].items() if k != "scale"}}
    # At the start the gains are the lengths, so that nothing changes.
    np.testing.assert_allclose(
        layer.apply(variables, x), Conv1d(3, 4, 5).apply(plain, x), atol=1e-6
    )
    kernel = weight_norm(variables["params"]["kernel"], jnp.arange(1.0, 5.0), (0, 1))
    np.testing.assert_allclose(jnp.sqrt(jnp.sum(kernel**2, (0, 1))), [1, 2, 3, 4], rtol=1e-5)


def test_time_group_norm_takes_time_and_channels_together():
    x = 3.0 + 2.0 * noise(2, 50, 4)
    layer = TimeGroupNorm(4)
    y = layer.apply(layer.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(jnp.mean(y, (1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(y, (1, 2)), 1.0, atol=1e-3)
    assert np.max(np.abs(np.mean(y, 1))) > 0.01  # not each channel by itself


def test_time_group_norm_of_groups_is_flax_group_norm():
    x = 3.0 + 2.0 * noise(2, 50, 6)
    layer = TimeGroupNorm(6, groups=2)
    variables = variables_of(layer, x)
    expected = nn.GroupNorm(2, epsilon=1e-5, use_fast_variance=False).apply(variables, x)
    # Sums over 150 terms in another order.
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_given_pads_stand_in_place_of_the_computed_ones():
    x = noise(2, 12, 3)
    layer = Conv1d(3, 4, 7, 3, pads=(3, 1))
    variables = variables_of(layer, x)
    params = jax.tree.map(np.asarray, variables["params"])
    padded = np.pad(x, ((0, 0), (3, 1), (0, 0)))
    expected = direct_conv(padded, params["kernel"], 3, 1) + params["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-4)


STREAMABLE = {
    "conv": Conv1d(3, 4, 7, causal=True, norm="weight"),
    "dilated": Conv1d(3, 4, 3, dilation=5, causal=True),
    "strided": Conv1d(3, 4, 6, 3, causal=True),
    "mirrored": Conv1d(3, 4, 7, causal=True, pad_mode="reflect"),
    "mirrored, strided": Conv1d(3, 4, 6, 3, causal=True, pad_mode="reflect"),
    "transposed": ConvTranspose1d(3, 4, 6, 3, causal=True, norm="weight"),
    "transposed, ragged": ConvTranspose1d(3, 4, 7, 3, causal=True),
    "lstm": ResidualLSTM(3, 1),
    "snake": Activation("snake", 3),
}


@pytest.mark.parametrize("name", STREAMABLE)
@settings(max_examples=4, deadline=None)
@given(sizes=st.lists(st.integers(1, 2), min_size=1, max_size=3))
def test_layer_equals_step(name, sizes):
    layer = STREAMABLE[name]
    stride = layer.stride if isinstance(layer, Conv1d) else 1
    # 9 steps first: enough to mirror; lengths are multiples of the stride.
    sizes = [9, *(size * stride for size in sizes)]
    x = noise(2, sum(sizes), 3)
    verify_streaming(layer, variables_of(layer, x), x, sizes)


def test_gradients_flow_through_a_stream():
    x = noise(2, 15, 3)
    for name in ("strided", "transposed"):
        layer = STREAMABLE[name]
        verify_streaming(layer, variables_of(layer, x), x, (9, 6), gradients=True)


def test_the_contract_catches_a_layer_that_looks_ahead():
    class Leaky(Conv1d):
        @property
        def padding(self):
            return 3, 3

    x = noise(1, 12, 3)
    layer = Leaky(3, 4, 7, causal=True)
    with pytest.raises(AssertionError):
        verify_streaming(layer, variables_of(layer, x), x, (6, 6))


def test_streams_refuse_what_they_cannot_do():
    x = noise(1, 12, 3)
    centred = Conv1d(3, 4, 7)
    with pytest.raises(ValueError, match="only a causal"):
        run_stream(centred, variables_of(centred, x), x, (6, 6))
    strided, mirrored = STREAMABLE["strided"], STREAMABLE["mirrored"]
    with pytest.raises(ValueError, match="no multiple of the stride 3"):
        run_stream(strided, variables_of(strided, x), x, (4, 8))
    with pytest.raises(ValueError, match="mirroring needs at least 7"):
        run_stream(mirrored, variables_of(mirrored, x), x, (6, 6))


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_finite_and_differentiable(name):
    layer, x = Activation(name, 3), 10.0 * noise(1, 5, 3)
    variables = layer.init(jax.random.key(0), x)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(layer.apply(variables, x)))(x)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_snake_is_its_equation():
    x, alpha = np.asarray(noise(1, 4, 2)), np.array([0.5, 2.0], np.float32)
    found = Activation("snake", 2).apply({"params": {"alpha": alpha}}, x)
    np.testing.assert_allclose(found, x + np.sin(alpha * x) ** 2 / alpha, rtol=1e-5, atol=1e-6)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'swish', expected one of"):
        Activation("swish", 2).init(jax.random.key(0), noise(1, 4, 2))
