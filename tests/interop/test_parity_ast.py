"""AST and ResNet-50's trunk against transformers: converted random weights.

Tolerance 1e-4: float32 sums over up to 72 terms in another order, values of order 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.interop import ast
from mgen.joint.resnet import ResNet, ResNetConfig
from mgen.joint.vit import ViT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
SHAPES = {
    "tiny": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_length=56,
        num_mel_bins=24,
    ),
    # Strides that differ and leave a rest, an odd number of patches.
    "odd": dict(
        hidden_size=42,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=50,
        max_length=41,
        num_mel_bins=18,
        patch_size=5,
        time_stride=4,
        frequency_stride=3,
        hidden_act="relu",
        layer_norm_eps=1e-3,
    ),
}


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def perturb(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    torch.manual_seed(0)
    shape = transformers.ASTConfig(**SHAPES[request.param])
    theirs = perturb(transformers.ASTModel(shape))
    config = ast.ast_config(shape)
    return theirs, config, ast.ast_params(config, numpy_state(theirs))


def test_hidden_states_and_pooled(pair):
    theirs, config, params = pair
    mel = np.random.default_rng(0).normal(size=(2, config.frames, config.mels))
    mel = mel.astype(np.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor(mel), output_hidden_states=True)
    tower = ViT(config)
    ours = jax.jit(tower.apply)({"params": params}, mel)
    last = expected.last_hidden_state.numpy()
    assert last.std() > 0.3
    np.testing.assert_allclose(ours.tokens, last, atol=TOLERANCE)
    np.testing.assert_allclose(ours.pooled, expected.pooler_output.numpy(), atol=TOLERANCE)
    hidden = tower.apply({"params": params}, mel, method="hidden_states")
    assert len(hidden) == len(expected.hidden_states)
    # Theirs has the last block before the final norm.
    for a, b in zip(hidden[:-1], expected.hidden_states[:-1], strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=TOLERANCE)


def test_released_names(pair):
    """The checkpoints on the hub have the names of transformers 4 and a classifier."""
    theirs, config, params = pair
    names = {
        "layers.": "encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    released = {"classifier.dense.weight": np.zeros((2, config.dim), np.float32)}
    for name, value in numpy_state(theirs).items():
        for old, new in names.items():
            name = name.replace(old, new)
        released[f"audio_spectrogram_transformer.{name}"] = value
    jax.tree.map(np.testing.assert_array_equal, ast.ast_params(config, released), params)


def test_parameter_count():
    shape = transformers.ASTConfig()
    with torch.device("meta"):
        expected = sum(p.numel() for p in transformers.ASTModel(shape).parameters())
    config = ast.ast_config(shape)
    mel = jnp.zeros((1, config.frames, config.mels))
    assert tree.size(jax.eval_shape(ViT(config).init, jax.random.key(0), mel)) == expected


@pytest.mark.parametrize("name", ["layers.1.mlp.fc1.bias", "embeddings.distillation_token"])
def test_weights_that_do_not_fit_are_named(pair, name):
    theirs, config, _ = pair
    state = numpy_state(theirs)
    with pytest.raises(UserError, match=f"{name} is missing"):
        ast.ast_params(config, {key: value for key, value in state.items() if key != name})
    with pytest.raises(UserError, match=rf"{name} has shape \(3,\)"):
        ast.ast_params(config, {**state, name: np.zeros(3)})
    with pytest.raises(UserError, match=r"extra\.weight has no place"):
        ast.ast_params(config, {**state, "extra.weight": np.zeros(3)})


def test_projections_without_bias_are_refused():
    with pytest.raises(UserError, match="qkv_bias is False"):
        ast.ast_config(transformers.ASTConfig(qkv_bias=False))


def resnet_params(state, blocks):
    """Parameters of `ResNet` from a `ResNetModel` with group norms; used by this file alone, since
    no ResNet of this kind is released."""

    def layer(name, number):
        norm = f"{name}.normalization"
        return {
            f"conv_{number}": {"kernel": state[f"{name}.convolution.weight"].transpose(2, 3, 1, 0)},
            f"norm_{number}": {"scale": state[f"{norm}.weight"], "bias": state[f"{norm}.bias"]},
        }

    def block(name):
        params = layer(f"{name}.layer.0", 0) | layer(f"{name}.layer.1", 1)
        params |= layer(f"{name}.layer.2", 2)
        if f"{name}.shortcut.convolution.weight" in state:
            params |= layer(f"{name}.shortcut", "shortcut")
        return params

    params = layer("embedder.embedder", "in")
    for stage, count in enumerate(blocks):
        for i in range(count):
            params[f"stage_{stage}_{i}"] = block(f"encoder.stages.{stage}.layers.{i}")
    return params


def test_resnet_with_group_norm():
    """Theirs with its batch norms replaced: ours has group norm."""
    torch.manual_seed(0)
    blocks, width, groups = (2, 1, 2), 16, 8
    shape = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=width,
        hidden_sizes=[4 * width * 2**i for i in range(len(blocks))],
        depths=list(blocks),
    )
    theirs = transformers.ResNetModel(shape)
    for module in list(theirs.modules()):
        norm = getattr(module, "normalization", None)
        if norm is not None:
            module.normalization = torch.nn.GroupNorm(groups, norm.num_features)
    perturb(theirs)
    config = ResNetConfig(blocks=blocks, width=width, groups=groups)
    mel = np.random.default_rng(0).normal(size=(2, 61, 37)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor(mel)[:, None])
    params = resnet_params(numpy_state(theirs), blocks)
    ours = jax.jit(ResNet(config).apply)({"params": params}, mel)
    last = expected.last_hidden_state.numpy().transpose(0, 2, 3, 1)
    assert last.std() > 0.3
    np.testing.assert_allclose(ours.tokens, last.reshape(2, -1, config.dim), atol=TOLERANCE)
    np.testing.assert_allclose(ours.pooled, expected.pooler_output[..., 0, 0], atol=TOLERANCE)


def test_resnet_50_has_the_trunk_of_the_original():
    with torch.device("meta"):
        theirs = transformers.ResNetModel(transformers.ResNetConfig(num_channels=1))
    expected = sum(p.numel() for p in theirs.parameters())
    params = jax.eval_shape(ResNet(ResNetConfig()).init, jax.random.key(0), jnp.zeros((1, 64, 64)))
    assert tree.size(params) == expected
