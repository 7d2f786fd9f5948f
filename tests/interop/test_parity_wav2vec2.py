"""Hidden states of Wav2Vec2-Conformer and Wav2Vec2-BERT against transformers, converted random
weights.

Tolerance 1e-4: float32 sums over up to 100 terms in another order, states of order 1.
"""

import numpy as np
import pytest

from mgen.errors import UserError
from mgen.interop import wav2vec2
from mgen.semantic.model import Encoder
from mgen.semantic.sample import FrozenSemantic

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

CONFORMER = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    hidden_act="swish",
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    conv_depthwise_kernel_size=7,
)
BERT = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    feature_projection_input_dim=20,
    conv_depthwise_kernel_size=7,
)
SHAPES = {
    "rotary": ("Wav2Vec2Conformer", dict(CONFORMER, position_embeddings_type="rotary")),
    "relative": ("Wav2Vec2Conformer", dict(CONFORMER, position_embeddings_type="relative")),
    "odd": (
        "Wav2Vec2Conformer",
        dict(
            hidden_size=30,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=44,
            hidden_act="gelu",
            feat_extract_norm="layer",
            conv_bias=True,
            conv_dim=(7, 9),
            conv_kernel=(10, 4),
            conv_stride=(5, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            conv_depthwise_kernel_size=3,
            position_embeddings_type="relative",
            mask_time_prob=0.0,
        ),
    ),
    "bert": (
        "Wav2Vec2Bert",
        dict(BERT, left_max_position_embeddings=5, right_max_position_embeddings=2),
    ),
    "bert_odd": (
        "Wav2Vec2Bert",
        dict(
            BERT,
            hidden_size=42,
            num_hidden_layers=3,
            num_attention_heads=7,
            feature_projection_input_dim=14,
            hidden_act="gelu",
            conv_depthwise_kernel_size=11,
            position_embeddings_type=None,
        ),
    ),
    "bert_rotary": ("Wav2Vec2Bert", dict(BERT, position_embeddings_type="rotary")),
}


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    torch.manual_seed(0)
    name, fields = SHAPES[request.param]
    shape = getattr(transformers, f"{name}Config")(**fields)
    theirs = getattr(transformers, f"{name}Model")(shape).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer_name, buffer in theirs.named_buffers():
            if "running" in buffer_name:
                buffer.copy_(1.0 + 0.3 * torch.rand_like(buffer))
    if name == "Wav2Vec2Bert":
        config = wav2vec2.wav2vec2_bert_config(shape)
    else:
        config = wav2vec2.wav2vec2_conformer_config(shape)
    return theirs, config, wav2vec2.wav2vec2_params(config, numpy_state(theirs))


def test_hidden_states(pair):
    theirs, config, variables = pair
    rng = np.random.default_rng(0)
    if "Bert" in type(theirs).__name__:
        width = theirs.config.feature_projection_input_dim
        x = rng.normal(size=(2, 13, width)).astype(np.float32)
        ours = Encoder(config).apply(variables, x, method="encode")
    else:
        x = rng.normal(size=(2, 4001)).astype(np.float32)
        ours = Encoder(config).apply(variables, x[..., None], method="hidden_states")
        frozen = FrozenSemantic.from_trained(config, variables["params"], variables)
        np.testing.assert_allclose(frozen.features(x[..., None], 1), ours[1], atol=1e-5)
    with torch.inference_mode():
        out = theirs(torch.tensor(x), output_hidden_states=True)
    # transformers leaves the last one without the final norm.
    expected = torch.stack([*out.hidden_states[:-1], out.last_hidden_state]).numpy()
    assert ours.shape == expected.shape and expected.std(axis=(1, 2, 3)).min() > 0.3
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s.pop("encoder.layers.1.conv_module.pointwise_conv1.weight"),
            "pointwise_conv1.weight is missing",
        ),
        (lambda s: s.update(extra=np.zeros(2)), "extra has no place"),
        (
            lambda s: s.update({"encoder.layers.0.ffn1.intermediate_dense.bias": np.zeros(3)}),
            r"ffn1.intermediate_dense.bias has shape \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(pair, change, message):
    theirs, config, _ = pair
    state = numpy_state(theirs)
    change(state)
    with pytest.raises(UserError, match=message):
        wav2vec2.wav2vec2_params(config, state)


@pytest.mark.parametrize(
    "field", [dict(add_adapter=True), dict(layer_norm_eps=1e-6), dict(hidden_act="mish")]
)
def test_settings_that_we_do_not_have_are_refused(field):
    with pytest.raises(UserError, match=next(iter(field))):
        wav2vec2.wav2vec2_bert_config(transformers.Wav2Vec2BertConfig(**field))
