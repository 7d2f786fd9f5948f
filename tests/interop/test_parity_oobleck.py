"""Our codec with diffusers' `AutoencoderOobleck` weights: same latents, same audio. Random weights,
small sizes.
"""

import jax
import numpy as np
import pytest

from mgen import tree
from mgen.codec import vae
from mgen.codec.model import Codec, CodecConfig, init_codec
from mgen.codec.sample import FrozenCodec
from mgen.configs.codec import oobleck_44khz
from mgen.errors import UserError
from mgen.interop import oobleck

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity
# float32 sums in another order; the outputs are of order 1.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 3, 8],
        channel_multiples=[1, 2, 4],
        decoder_channels=6,
        decoder_input_channels=4,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.normal_(0, 0.5)
            elif name.endswith("weight_g"):
                parameter.mul_(1.1)
    config = oobleck.config(dict(model.config))
    return model, config, oobleck.from_torch(config, numpy_state(model))


def numpy_state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_latents_audio_and_kl(pair):
    model, config, variables = pair
    audio = 0.3 * np.random.default_rng(0).standard_normal((2, 20 * config.hop, 2))
    audio = audio.astype(np.float32)
    with torch.inference_mode():
        posterior = model.encode(torch.from_numpy(audio).mT).latent_dist
        expected = model.decode(posterior.mode()).sample.mT.numpy()
        kl = posterior.kl().numpy()
    frozen = FrozenCodec(config, variables["params"])
    latents = frozen.encode_latents(audio)
    np.testing.assert_allclose(latents, posterior.mean.mT.numpy(), rtol=0, atol=TOLERANCE)
    decoded = np.asarray(frozen.decode_latents(latents))[:, : expected.shape[1]]
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=TOLERANCE)
    out = Codec(config).apply(variables, audio, False)
    np.testing.assert_allclose(out.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(out.extras["std"], posterior.std.mean().numpy(), rtol=1e-4)


def test_sampling_uses_their_scale():
    encoded = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)
    mean, std = vae.moments(encoded)
    torch_scale = torch.nn.functional.softplus(torch.from_numpy(encoded[..., 4:])) + 1e-4
    np.testing.assert_allclose(std, torch_scale.numpy(), rtol=1e-6)
    draws = jax.vmap(lambda key: vae.sample(key, mean, std))(
        jax.random.split(jax.random.key(0), 4000)
    )
    # 4000 draws: the deviation of a deviation is 1/sqrt(8000) = 1.1%.
    np.testing.assert_allclose(np.std(draws, axis=0), std, rtol=0.06)


def test_weights_go_back(pair):
    model, config, variables = pair
    state, original = oobleck.to_torch(config, variables), numpy_state(model)
    assert state.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(state[name], tensor, err_msg=name)


def test_amiss_tensors_are_named(pair):
    model, config, _ = pair
    state = numpy_state(model)
    name = "decoder.block.1.conv_t1.weight_v"
    with pytest.raises(UserError, match=r"has shape \(2,\), expected"):
        oobleck.from_torch(config, {**state, name: np.zeros(2)})


def test_full_size():
    config = CodecConfig.from_config(oobleck_44khz.get_config().model)
    shapes = jax.eval_shape(lambda key: init_codec(config, key), jax.random.key(0))
    assert tree.size(shapes) == 156_112_514
    with torch.device("meta"):
        model = diffusers.AutoencoderOobleck()
    assert oobleck.config(dict(model.config)) == config
