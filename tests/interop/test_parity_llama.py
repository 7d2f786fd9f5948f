"""Llama and CSM's depth decoder against transformers: converted random weights, logits.

Tolerance 1e-4: float32 sums over up to 60 terms in another order, logits of order 1.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.interop import llama
from mgen.lm.filters import SamplingConfig
from mgen.lm.model import LM
from mgen.lm.sample import FrozenLM

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SHAPES = {
    "tiny": dict(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    ),
    "odd": dict(
        vocab_size=37,
        hidden_size=60,
        intermediate_size=50,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-3,
        rope_theta=500.0,
    ),
}
B, L, START = 2, 9, 1


def perturbed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def numpy_state(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(**SHAPES[request.param])
    theirs = perturbed(transformers.LlamaForCausalLM(shape))
    config = llama.llama_config(shape)
    return theirs, config, llama.llama_params(config, numpy_state(theirs), START)


def test_llama_logits(pair):
    theirs, config, params = pair
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (B, L, 1))
    ids = np.concatenate([np.full((B, 1), START), codes[:, :-1, 0]], axis=1)
    with torch.inference_mode():
        expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    ours = LM(config).apply({"params": params}, jnp.asarray(codes, jnp.int32))
    assert expected.std() > 0.3
    np.testing.assert_allclose(ours[:, :, 0], expected, atol=1e-4)


def test_llama_greedy_continuation(pair):
    theirs, config, params = pair
    prompt = np.random.default_rng(1).integers(0, config.codebook_size, (B, 4, 1))
    ids = torch.tensor(np.concatenate([np.full((B, 1), START), prompt[:, :, 0]], axis=1))
    with torch.inference_mode():
        for _ in range(8):
            ids = torch.cat([ids, theirs(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    codes = FrozenLM.from_trained(config, params).generate(
        frames=12, seeds=np.arange(B), prompt=prompt, sampling=SamplingConfig(temperature=0.0)
    )
    np.testing.assert_array_equal(codes[:, :, 0], ids[:, 1:].numpy())


@pytest.mark.parametrize("codebooks, width", [(4, 32), (3, 24)])
def test_csm_depth_logits(codebooks, width):
    torch.manual_seed(0)
    depth = dict(
        num_codebooks=codebooks,
        backbone_hidden_size=40,
        vocab_size=17,
        hidden_size=width,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=width // 4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    shape = transformers.CsmDepthDecoderConfig(**depth)
    theirs = perturbed(transformers.CsmDepthDecoderForCausalLM(shape))
    whole = transformers.CsmConfig(num_attention_heads=4)
    whole.depth_decoder_config = shape
    config = llama.csm_config(whole)
    params = llama.csm_depth_params(config, numpy_state(theirs))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 17, (B, codebooks))
    hidden = rng.normal(size=(B, 40)).astype(np.float32)
    ids = np.concatenate([np.zeros((B, 1), int), codes[:, :-1]], axis=1)
    with torch.inference_mode():
        expected = theirs(
            input_ids=torch.tensor(ids), backbone_last_hidden_state=torch.tensor(hidden)
        ).logits.numpy()

    def logits(model, hidden, codes):
        top = model.depth(model.depth_input(hidden, codes))
        return model.heads(top.reshape(*codes.shape, -1))

    ours = LM(config).apply(
        {"params": params},
        jnp.asarray(hidden)[:, None],
        jnp.asarray(codes, jnp.int32)[:, None],
        method=logits,
    )
    assert expected.std() > 0.3
    np.testing.assert_allclose(ours[:, 0, 1:], expected, atol=1e-4)


def test_scaled_positions_and_strange_weights_are_refused(pair):
    shape = transformers.LlamaConfig(
        **SHAPES["tiny"], rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    )
    with pytest.raises(UserError, match="rope_type is 'linear'"):
        llama.llama_config(shape)
    theirs, config, _ = pair
    with pytest.raises(UserError, match="extra has no place"):
        llama.llama_params(config, {**numpy_state(theirs), "extra": np.zeros(2)}, START)
