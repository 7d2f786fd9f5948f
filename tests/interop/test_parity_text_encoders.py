"""T5's encoder, BERT and RoBERTa against transformers: converted random weights.

Tolerance 1e-4: float32 sums over up to 72 terms in another order, values of order 1.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.interop import text_encoders
from mgen.joint.text import TextTower
from mgen.nn.embed import RelativeBias

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
LENGTH = 40
T5 = {
    "tiny": dict(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    # Heads wider than dim / heads, few buckets, an odd width.
    "odd": dict(
        vocab_size=23,
        d_model=36,
        d_kv=10,
        d_ff=50,
        num_layers=3,
        num_heads=3,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=20,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-3,
    ),
}
BERT = {
    "tiny": dict(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    ),
    "odd": dict(
        vocab_size=23,
        hidden_size=42,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=50,
        max_position_embeddings=LENGTH + 4,
        type_vocab_size=3,
        hidden_act="gelu_new",
        layer_norm_eps=1e-3,
        pad_token_id=3,
    ),
}
CASES = [(family, size) for family in ("t5", "bert", "roberta") for size in ("tiny", "odd")]


def build(family, size):
    """(their model, our config, our parameters); weights far from their initial values."""
    torch.manual_seed(0)
    if family == "t5":
        shape = transformers.T5Config(**T5[size])
        theirs = transformers.T5EncoderModel(shape)
        config, convert = text_encoders.t5_config(shape), text_encoders.t5_params
    elif family == "bert":
        shape = transformers.BertConfig(**BERT[size])
        theirs = transformers.BertModel(shape)
        config, convert = text_encoders.bert_config(shape), text_encoders.bert_params
    else:
        shape = transformers.RobertaConfig(**BERT[size])
        theirs = transformers.RobertaModel(shape)
        config, convert = text_encoders.roberta_config(shape), text_encoders.bert_params
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return theirs.eval(), config, convert


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(request):
    theirs, config, convert = build(*request.param)
    return theirs, config, convert(config, numpy_state(theirs))


@pytest.fixture(scope="module")
def inputs(pair):
    """Ids and a mask that pads the second text; RoBERTa numbers positions by the padding id."""
    theirs, config, _ = pair
    pad = theirs.config.pad_token_id
    ids = np.random.default_rng(0).integers(pad + 1, config.vocab_size, (2, LENGTH))
    mask = np.arange(LENGTH)[None] < np.asarray([[LENGTH], [11]])
    return np.where(mask, ids, pad), mask


def test_hidden_states_and_pooled(pair, inputs):
    theirs, config, params = pair
    ids, mask = inputs
    with torch.inference_mode():
        expected = theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    tower = TextTower(config)
    arguments = ({"params": params}, jnp.asarray(ids, jnp.int32), jnp.asarray(mask))
    ours = tower.apply(*arguments)
    hidden = tower.apply(*arguments, method="hidden_states")
    assert len(expected.hidden_states) == len(hidden) == config.layers + 1
    for a, b in zip(hidden, expected.hidden_states, strict=True):
        assert b.numpy()[mask].std() > 0.3
        np.testing.assert_allclose(a[mask], b.numpy()[mask], atol=TOLERANCE)
    last = expected.last_hidden_state.numpy()
    np.testing.assert_allclose(ours.tokens[mask], last[mask], atol=TOLERANCE)
    if config.pooling == "tanh_cls":
        np.testing.assert_allclose(ours.pooled, expected.pooler_output.numpy(), atol=TOLERANCE)
    else:
        mean = [row[kept].mean(0) for row, kept in zip(last, mask, strict=True)]
        np.testing.assert_allclose(ours.pooled, mean, atol=TOLERANCE)


@pytest.mark.parametrize("buckets, distance", [(32, 128), (12, 20), (64, 256)])
def test_buckets_of_distances(buckets, distance):
    """Integers, so exactly; rounding of the logarithm must not move a distance to the next one."""
    attention = transformers.models.t5.modeling_t5.T5Attention
    distances = np.arange(-600, 601)
    for both in (True, False):
        expected = attention._relative_position_bucket(
            torch.tensor(distances),
            bidirectional=both,
            num_buckets=buckets,
            max_distance=distance,
        )
        ours = RelativeBias(buckets, distance, 1, both).bucket(distances)
        np.testing.assert_array_equal(ours, expected.numpy())


@pytest.mark.parametrize("family", ["t5", "bert", "roberta"])
def test_unrolled_layers(family):
    theirs, config, convert = build(family, "tiny")
    state = numpy_state(theirs)
    ids = jnp.arange(5, 15, dtype=jnp.int32)[None]
    scanned, unrolled = (
        type(config)(**{**vars(config), "scan": scan, "layers": 2}) for scan in (True, False)
    )
    a, b = (TextTower(c).apply({"params": convert(c, state)}, ids) for c in (scanned, unrolled))
    np.testing.assert_allclose(a.tokens, b.tokens, atol=1e-5)


def test_checkpoints_with_heads_and_older_names():
    """What the hub holds: BERT for pre-training with gamma and beta, T5 with its decoder."""
    bert = transformers.BertForPreTraining(transformers.BertConfig(**BERT["tiny"]))
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in numpy_state(bert).items()
    }
    config = text_encoders.bert_config(bert.config)
    assert any("gamma" in name for name in state)
    released = text_encoders.bert_params(config, state)
    np.testing.assert_array_equal(
        released["pooler"]["bias"], bert.bert.pooler.dense.bias.detach().numpy()
    )
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5["tiny"]))
    released = text_encoders.t5_params(text_encoders.t5_config(t5.config), numpy_state(t5))
    np.testing.assert_array_equal(
        released["tokens"]["embedding"], t5.shared.weight.detach().numpy()
    )


def test_pooler_is_left_out_where_not_used():
    theirs, config, convert = build("bert", "tiny")
    plain = type(config)(**{**vars(config), "pooling": "cls"})
    params = convert(plain, numpy_state(theirs))
    assert "pooler" not in params
    ids = jnp.arange(8, dtype=jnp.int32)[None]
    ours = TextTower(plain).apply({"params": params}, ids)
    np.testing.assert_array_equal(ours.pooled, ours.tokens[:, 0])


@pytest.mark.parametrize(
    "family, name",
    [("t5", "encoder.block.1.layer.1.DenseReluDense.wo.weight"), ("bert", "pooler.dense.bias")],
)
def test_weights_that_do_not_fit_are_named(family, name):
    theirs, config, convert = build(family, "tiny")
    state = numpy_state(theirs)
    missing = {key: value for key, value in state.items() if key != name}
    with pytest.raises(UserError, match=f"{name} is missing"):
        convert(config, missing)
    with pytest.raises(UserError, match=rf"{name} has shape \(3,\)"):
        convert(config, {**state, name: np.zeros(3)})
    with pytest.raises(UserError, match=r"extra\.weight has no place"):
        convert(config, {**state, "extra.weight": np.zeros(3)})


def test_unknown_activation_is_named():
    shape = transformers.BertConfig(**{**BERT["tiny"], "hidden_act": "mish"})
    with pytest.raises(UserError, match="hidden_act is 'mish'"):
        text_encoders.bert_config(shape)
