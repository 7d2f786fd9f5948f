"""Attention against a numpy reference, and the cached form against the whole-sequence form."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.kernels.decode_attention import cached_attention
from mgen.nn import embed
from mgen.nn.attention import Attention, attend

B, L, C, D = 2, 6, 5, 16


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(q, k, v, mask):
    """[H, L, hd] and [G, C, hd] of one example; mask [L, C]."""
    k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    return softmax(np.where(mask, scores, -1e30)) @ v


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_cached_attention_is_attention(groups):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, 4, L, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, B, groups, C, 8)).astype(np.float32)
    mask = rng.random((B, L, C)) < 0.7
    mask[..., 0] = True
    out = cached_attention(*map(jnp.asarray, (q, k, v, mask)))
    for b in range(B):
        np.testing.assert_allclose(out[b], reference(q[b], k[b], v[b], mask[b]), atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
def test_module_is_cached_attention_of_its_projections(rotary):
    module = Attention(heads=4, kv_heads=2, head_dim=4, bias=True, causal=True, rotary=rotary)
    x = jax.random.normal(jax.random.key(0), (B, L, D))
    params = module.init(jax.random.key(1), x)["params"]

    def heads(name):
        projected = jnp.einsum("bld,dhw->bhlw", x, params[name]["kernel"])
        return projected + params[name]["bias"][None, :, None]

    q, k, v = heads("query"), heads("key"), heads("value")
    if rotary:
        q, k = (embed.rope(h, jnp.arange(L)) for h in (q, k))
    causal = jnp.tril(jnp.ones((L, L), bool))[None]
    merged = cached_attention(q, k, v, causal)
    expected = jnp.einsum("bhlw,hwd->bld", merged, params["out"]["kernel"])
    expected = expected + params["out"]["bias"][None, None]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)


def test_masked_memory_has_no_influence():
    module = Attention(heads=2, kv_heads=2, head_dim=8)
    x, memory = (jax.random.normal(jax.random.key(i), (B, C, D)) for i in range(2))
    mask = jnp.asarray([[True, True, False, False, False], [True] * 5])[:, None]
    params = module.init(jax.random.key(2), x, memory, mask)
    changed = jnp.where(mask[:, 0, :, None], memory, 100.0)
    np.testing.assert_array_equal(
        module.apply(params, x, memory, mask), module.apply(params, x, changed, mask)
    )


def test_rope_depends_on_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 8))

    def score(i, j):
        return embed.rope(q, jnp.asarray(i)) @ embed.rope(k, jnp.asarray(j))

    np.testing.assert_allclose(score(3, 1), score(12, 10), rtol=1e-4)
    assert abs(score(3, 1) - score(4, 1)) > 1e-3


def test_sinusoidal_is_cosines_then_sines():
    table = np.asarray(embed.sinusoidal(jnp.arange(5), 7))
    frequency = 10000.0 ** (-np.arange(3) / 2)
    angle = np.arange(5)[:, None] * frequency
    expected = np.concatenate([np.cos(angle), np.sin(angle), np.zeros((5, 1))], axis=1)
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_sum_embed_adds_one_row_a_field():
    module = embed.SumEmbed((3, 5), 4)
    fields = jnp.asarray([[2, 0], [1, 4]])
    variables = module.init(jax.random.key(0), fields)
    table = variables["params"]["embedding"]
    expected = jnp.stack([table[2] + table[3], table[1] + table[7]])
    np.testing.assert_allclose(module.apply(variables, fields), expected, rtol=1e-6)


def test_rotary_positions_may_be_given():
    """Tokens in another order with the positions that they had come out in that order."""
    module = Attention(heads=4, kv_heads=2, head_dim=4, rotary=True)
    x = jax.random.normal(jax.random.key(0), (B, L, D))
    params = module.init(jax.random.key(1), x)
    out = module.apply(params, x)
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    turned = module.apply(params, x[:, order], positions=order)
    np.testing.assert_allclose(turned, out[:, order], atol=1e-5)
    assert jnp.abs(module.apply(params, x[:, order]) - out[:, order]).max() > 1e-2


def test_embeddings_beside_a_mask_are_refused():
    x = jnp.zeros((1, 3, 1, 4))
    with pytest.raises(ValueError, match="beside a mask"):
        attend(x, x, x, mask=jnp.ones((1, 3, 3), bool), embedding=jnp.zeros((1, 5, 4)))


COMPILED = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from mgen import preflight
from mgen.nn.attention import Attention

mesh = Mesh(preflight.devices_of("v5e:1x1")[:1], ("x",), axis_types=(AxisType.Auto,))
place = NamedSharding(mesh, P())
layer = Attention(4, 2, 64, causal=True, rotary=True, window=100, sink=4, dtype="bfloat16")
for length in (1024, 32):
    x = jax.ShapeDtypeStruct((2, length, 256), jnp.bfloat16, sharding=place)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=place), params)
    loss = lambda params, x: jnp.square(layer.apply(params, x)).sum()
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    kept = compiled.memory_analysis().temp_size_in_bytes
    print("tpu_custom_call" in compiled.as_text(), kept < 4 * 2 * 4 * length**2)
"""


def test_long_sequences_keep_no_scores_on_tpus(compile_for_tpus):
    printed = compile_for_tpus(COMPILED)
    assert printed.split()[-4:-1] == ["True", "True", "False"]


@pytest.mark.parametrize("settings", [{}, {"causal": True, "window": 64}, {"causal": True}])
@pytest.mark.parametrize("biased", [False, True])
def test_gpus_attend_by_cudnn(settings, biased, monkeypatch):
    """What is lowered for a GPU, forward and backward, with what says that one is here replaced."""
    monkeypatch.setattr("mgen.nn.attention.platform", lambda: "gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91000)
    length = 256
    bias = jnp.zeros((4, 2 * length - 1)) if biased else None
    x = jnp.zeros((B, length, 32), jnp.bfloat16)

    def gpu_kernels(dtype, **more):
        module = Attention(heads=4, kv_heads=2, head_dim=8, dtype=dtype, **settings, **more)
        variables = jax.eval_shape(module.init, jax.random.key(0), x, bias=bias)

        def loss(variables, bias):
            return jnp.sum(module.apply(variables, x, bias=bias).astype(jnp.float32))

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1) if biased else 0))
        text = step.trace(variables, bias).lower(lowering_platforms=("cuda",)).as_text()
        found = set(re.findall(r"__cudnn\$fmha\w*", text))
        return found, re.search(rf"<{B}x[\dx]*{length}x{length}xf32>", text) is not None

    found, scores = gpu_kernels("bfloat16")
    kind = "ScaleBias" if biased else ""
    assert found == {f"__cudnn$fmha{kind}Softmax", f"__cudnn$fmha{kind}SoftmaxBackward"}
    assert not scores
    # Embeddings of distances are XLA's: cuDNN would give their scores no gradient.
    q = jnp.zeros((B, length, 4, 8), jnp.bfloat16)
    table = jnp.zeros((4, 2 * length - 1, 8), jnp.bfloat16)
    lowered = jax.jit(lambda e: attend(q, q, q, embedding=e)).trace(table)
    assert "cudnn" not in lowered.lower(lowering_platforms=("cuda",)).as_text()
    # Single precision, and first positions seen beside a window, are XLA's.
    assert gpu_kernels("float32") == (set(), True)
    if settings.get("window"):
        assert gpu_kernels("bfloat16", sink=2) == (set(), True)
