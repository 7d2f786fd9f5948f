"""Our codec with transformers' `DacModel` weights: same audio, same codes. Random weights, small
sizes.
"""

import importlib

import jax
import numpy as np
import pytest

from mgen import tree
from mgen.codec.fold import fold_weight_norm
from mgen.codec.model import Codec, CodecConfig, init_codec
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.interop import dac

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
# float32 sums in another order; tanh bounds the output to 1.
TOLERANCE = 1e-4
CASES = {
    "44k": dict(sampling_rate=44100, downsampling_ratios=[2, 4, 8, 8]),
    "24k, odd stride": dict(sampling_rate=24000, downsampling_ratios=[2, 4, 5, 8]),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    torch.manual_seed(0)
    released = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=96,
        n_codebooks=3,
        codebook_size=64,
        codebook_dim=4,
        **CASES[request.param],
    )
    model = transformers.DacModel(released).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.5, 2.0)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.05)
            elif "codebook" in name:
                parameter.normal_()
            else:  # The initial 0.02 would leave silence; this keeps tanh out of saturation.
                gain = 0.3 if "res_unit" in name or "decoder.conv2" in name else 1.0
                parameter.normal_(0, gain * parameter[0].numel() ** -0.5)
    return model, dac.config(released.to_dict())


def numpy_state(model):
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def test_audio_and_codes(pair):
    model, config = pair
    variables = dac.from_torch(config, numpy_state(model))
    audio = 0.3 * np.random.default_rng(0).standard_normal((2, 12 * config.hop, 1))
    audio = audio.astype(np.float32)
    frozen = FrozenCodec(config, variables["params"])
    with torch.inference_mode():
        out = model(torch.from_numpy(audio).mT)
        two = model.encode(torch.from_numpy(audio).mT, n_quantizers=2).audio_codes.mT.numpy()
    codes = np.asarray(frozen.encode(audio))
    np.testing.assert_array_equal(codes, out.audio_codes.mT.numpy())
    np.testing.assert_array_equal(frozen.encode(audio, 2), two)
    expected = out.audio_values.numpy()
    decoded = np.asarray(frozen.decode(codes))[..., 0]
    # Odd strides lose samples at the end over there; ours fills them up with zeros.
    missing = decoded.shape[1] - expected.shape[1]
    assert missing == (8 if 5 in config.strides else 0)
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(decoded[:, : expected.shape[1]], expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(decoded[:, expected.shape[1] :], 0.0)


def test_losses_equal_in_training(pair):
    """The bottleneck's own losses, at all levels and with the published weights."""
    model, config = pair
    variables = dac.from_torch(config, numpy_state(model))
    audio = 0.3 * np.random.default_rng(1).standard_normal((2, 6 * config.hop, 1))
    audio = audio.astype(np.float32)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(audio).mT).loss.numpy()
    out = Codec(config).apply(variables, audio, True)
    # Theirs comes an example (its mean over the batch is in both).
    found = 0.25 * out.commitment + out.codebook_loss
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4)


def test_weights_go_back_with_and_without_weight_norm(pair):
    model, config = pair
    original = numpy_state(model)
    state = dac.to_torch(config, dac.from_torch(config, original))
    assert state.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(state[name], tensor, err_msg=name)

    trainable = config.replace(norm="weight")
    variables = dac.from_torch(trainable, original)
    peer = transformers.DacModel(model.config)
    peer.apply_weight_norm()
    state = dac.to_torch(trainable, variables)
    with pytest.raises(RuntimeError, match="parametrizations"):  # conv2 of the decoder lacks it
        model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    peer.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    _, folded = fold_weight_norm(trainable, variables["params"])
    plain = dac.from_torch(config, original)["params"]
    assert jax.tree.structure(folded) == jax.tree.structure(plain)
    for ours, theirs in zip(jax.tree.leaves(folded), jax.tree.leaves(plain)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_amiss_tensors_are_named(pair):
    model, config = pair
    state = numpy_state(model)
    name = "quantizer.quantizers.1.in_proj.bias"
    with pytest.raises(UserError, match=f"{name} is missing"):
        dac.from_torch(config, {k: v for k, v in state.items() if k != name})


@pytest.mark.parametrize(
    ("name", "rate", "ratios", "codebooks"),
    [
        ("dac_16khz", 16000, [2, 4, 5, 8], 12),
        ("dac_24khz", 24000, [2, 4, 5, 8], 32),
        ("dac_44khz", 44100, [2, 4, 8, 8], 9),
    ],
)
def test_full_size(name, rate, ratios, codebooks):
    """Named config = released config, and as many parameters as the peer counts once weight norm is
    folded, as released.
    """
    experiment = importlib.import_module(f"mgen.configs.codec.{name}").get_config()
    config = CodecConfig.from_config(experiment.model)
    released = transformers.DacConfig(
        sampling_rate=rate,
        downsampling_ratios=ratios,
        n_codebooks=codebooks,
        quantizer_dropout=0.5,
    )
    with torch.device("meta"):
        model = transformers.DacModel(released)

    def folded(key):
        return fold_weight_norm(config, init_codec(config, key)["params"])[1]

    shapes = jax.eval_shape(folded, jax.random.key(0))
    assert tree.size(shapes) == sum(p.numel() for p in model.parameters())
    assert dac.config(released.to_dict(), norm="weight") == config
