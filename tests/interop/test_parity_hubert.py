"""HuBERT's hidden states against transformers, converted random weights.

Tolerance 1e-4: float32 sums over up to 100 terms in another order, states of order 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.errors import UserError
from mgen.interop import hubert
from mgen.semantic.model import Encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SHAPES = {
    "base": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
    "large": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
    ),
    "odd": dict(
        hidden_size=30,
        num_hidden_layers=3,
        num_attention_heads=5,
        intermediate_size=50,
        hidden_act="relu",
        conv_dim=(7, 9, 11),
        conv_kernel=(10, 4, 3),
        conv_stride=(5, 3, 2),
        num_conv_pos_embeddings=7,
        num_conv_pos_embedding_groups=3,
        feat_proj_layer_norm=False,
        layer_norm_eps=1e-3,
    ),
}


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    torch.manual_seed(0)
    shape = transformers.HubertConfig(**SHAPES[request.param])
    theirs = transformers.HubertModel(shape).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = hubert.hubert_config(shape)
    return theirs, config, hubert.hubert_params(config, numpy_state(theirs))


def audio():
    return np.random.default_rng(0).normal(size=(2, 4001)).astype(np.float32)


def test_hidden_states(pair):
    theirs, config, params = pair
    with torch.inference_mode():
        out = theirs(torch.tensor(audio()), output_hidden_states=True)
    # transformers leaves the last one of pre-norm stacks without the final norm.
    expected = torch.stack([*out.hidden_states[:-1], out.last_hidden_state]).numpy()
    encoder = Encoder(config)
    ours = encoder.apply({"params": params}, audio()[..., None], method="hidden_states")
    assert ours.shape == (config.layers + 1, 2, config.frames(4001), config.dim)
    assert expected.std(axis=(1, 2, 3)).min() > 0.3
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    last = encoder.apply({"params": params}, audio()[..., None])
    np.testing.assert_allclose(last, ours[-1], atol=1e-5)


def test_masked_frames(pair):
    theirs, config, params = pair
    frames = config.frames(4001)
    mask = np.zeros((2, frames), bool)
    mask[0, 3:7] = mask[1, 5:] = True
    with torch.inference_mode():
        out = theirs(torch.tensor(audio()), mask_time_indices=torch.tensor(mask))
    ours = Encoder(config).apply({"params": params}, audio()[..., None], jnp.asarray(mask))
    np.testing.assert_allclose(ours, out.last_hidden_state.numpy(), atol=1e-4)


@pytest.mark.parametrize("naming", ["weight_g", "weight_v"])
def test_old_names_of_weight_norm(pair, naming):
    theirs, config, params = pair
    state = numpy_state(theirs)
    name = "encoder.pos_conv_embed.conv"
    for i, old in enumerate(("weight_g", "weight_v")):
        state[f"{name}.{old}"] = state.pop(f"{name}.parametrizations.weight.original{i}")
    jax.tree.map(np.testing.assert_array_equal, hubert.hubert_params(config, state), params)
    state.pop(f"{name}.{naming}")
    with pytest.raises(UserError, match=f"{name}.* is missing"):
        hubert.hubert_params(config, state)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("encoder.layers.1.attention.k_proj.bias"), "k_proj.bias is missing"),
        (lambda s: s.update(extra=np.zeros(2)), "extra has no place"),
        (lambda s: s.update({"encoder.layer_norm.bias": np.zeros(3)}), r"has shape \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(pair, change, message):
    theirs, config, _ = pair
    state = numpy_state(theirs)
    change(state)
    with pytest.raises(UserError, match=message):
        hubert.hubert_params(config, state)


def test_settings_that_we_do_not_have_are_refused():
    for field in (dict(hidden_act="mish"), dict(feat_extract_activation="relu")):
        with pytest.raises(UserError, match=next(iter(field))):
            hubert.hubert_config(transformers.HubertConfig(**field))
    with pytest.raises(UserError, match="conv_pos_batch_norm"):
        hubert.hubert_config(transformers.HubertConfig(conv_pos_batch_norm=True))


@pytest.mark.parametrize(
    "name, fields",
    [
        ("base", {}),
        (
            "large",
            dict(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                do_stable_layer_norm=True,
                feat_extract_norm="layer",
                conv_bias=True,
            ),
        ),
    ],
)
def test_published_sizes(name, fields):
    shape = transformers.HubertConfig(**fields)
    with torch.device("meta"):
        theirs = transformers.HubertModel(shape)
    config = hubert.hubert_config(shape)
    audio = jax.ShapeDtypeStruct((1, 1600, 1), jnp.float32)
    params = jax.eval_shape(Encoder(config).init, jax.random.key(0), audio)["params"]
    assert tree.size(params) == sum(p.numel() for p in theirs.parameters())
    assert dataclasses.replace(config, sample_rate=24000).frame_rate == 75
