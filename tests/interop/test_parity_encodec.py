"""Our codec with transformers' `EncodecModel` weights: same audio, same codes. Random weights,
small sizes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen import tree
from mgen.codec.model import init_codec
from mgen.codec.sample import FrozenCodec
from mgen.errors import UserError
from mgen.interop import encodec
from mgen.interop.torch_weights import load_safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
# float32 sums in another order; the outputs are of order 1.
TOLERANCE = 1e-4
SMALL = dict(num_filters=4, hidden_size=16, codebook_size=32, num_lstm_layers=1)
CASES = {
    "24k": dict(
        SMALL, upsampling_ratios=[5, 4, 2], target_bandwidths=[1.5, 24.0], num_lstm_layers=2
    ),
    "32k": dict(
        SMALL,
        sampling_rate=32000,
        upsampling_ratios=[8, 5, 4, 4],
        use_causal_conv=False,
        use_conv_shortcut=False,
        target_bandwidths=[1.0],
    ),
    "48k": dict(
        SMALL,
        sampling_rate=4800,
        audio_channels=2,
        upsampling_ratios=[4, 2],
        norm_type="time_group_norm",
        use_causal_conv=False,
        normalize=True,
        chunk_length_s=0.1,
        overlap=0.01,
        target_bandwidths=[3.0, 15.0],
    ),
}


def random_model(kwargs):
    """A peer with weights that give audio of order 1 and codebooks that latents spread over."""
    torch.manual_seed(0)
    model = transformers.EncodecModel(transformers.EncodecConfig(**kwargs)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter += 0.1 * torch.randn_like(parameter)
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_(0, 0.3)
            layer.codebook.embed_avg.copy_(layer.codebook.embed)
            layer.codebook.cluster_size.fill_(1.0)
    return model


def numpy_state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    model = random_model(CASES[request.param])
    config = encodec.config(model.config.to_dict())
    variables = encodec.from_torch(config, numpy_state(model))
    return model, config, variables


def assert_codes_equal(ours, theirs, latents, embeddings):
    """Equal, or else the two code vectors are as near to the residual as rounding can tell."""
    residual = np.array(latents, np.float64)
    for k in range(ours.shape[-1]):
        book = np.asarray(embeddings[k], np.float64)
        distance = np.sum((residual - book[ours[..., k]]) ** 2, -1)
        other = np.sum((residual - book[theirs[..., k]]) ** 2, -1)
        np.testing.assert_allclose(distance, other, rtol=1e-4, atol=1e-5)
        residual = residual - book[ours[..., k]]
    assert np.mean(ours == theirs) > 0.999


def test_audio_and_codes(pair):
    model, config, variables = pair
    rng = np.random.default_rng(0)
    # An odd length: the end is padded layer by layer. Segments are padded to whole ones, as their
    # processor does.
    length = (
        1501 if not config.segment_length else config.segment_length + 3 * config.segment_stride
    )
    audio = 0.3 * rng.standard_normal((2, length, config.channels)).astype(np.float32)
    frozen = FrozenCodec(config, variables["params"], {"codebook": variables["codebook"]})
    codes, levels = frozen.encode_with_levels(audio)
    decoded = np.asarray(frozen.decode(codes, levels))

    with torch.inference_mode():
        peer = model.encode(
            torch.from_numpy(audio).mT, bandwidth=model.config.target_bandwidths[-1]
        )
        # Their loop adds a segment of nothing but the overlap at the end; ours has none.
        segments = levels.shape[1]
        assert len(peer.audio_codes) == segments + (1 if config.segment_length else 0)
        theirs = peer.audio_codes[:segments].numpy()  # [N, B, K, F]
        theirs = theirs.transpose(1, 0, 3, 2).reshape(2, -1, config.num_codebooks)
        assert theirs.shape == codes.shape
        joined = np.asarray(codes).reshape(2, segments, -1, config.num_codebooks)
        joined = torch.from_numpy(joined.transpose(1, 0, 3, 2).astype(np.int64))
        scales = peer.audio_scales[:segments]
        expected = model.decode(joined, scales).audio_values.mT.numpy()
    latents = frozen.encode_latents(audio)
    book = variables["codebook"]["quantizer"]["embedding"]
    assert_codes_equal(np.asarray(codes), theirs, latents, book)
    assert decoded.shape == expected.shape
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=TOLERANCE)
    if config.normalize:
        scales = torch.stack(list(scales), 1)[:, :, 0].numpy()
        np.testing.assert_allclose(levels, scales, rtol=1e-5)


def test_weights_go_back(pair):
    model, config, variables = pair
    state, original = encodec.to_torch(config, variables), numpy_state(model)
    assert state.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(state[name], tensor, err_msg=name)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in state.items()})


def test_our_init_has_their_tree(pair):
    _, config, variables = pair
    shapes = jax.eval_shape(lambda key: init_codec(config, key), jax.random.key(0))
    assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, variables)


def test_from_a_safetensors_file(pair, tmp_path):
    from safetensors.numpy import save_file

    model, config, variables = pair
    path = tmp_path / "model.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in numpy_state(model).items()}, path)
    read = encodec.from_torch(config, load_safetensors(path))
    assert tree.fingerprint(read) == tree.fingerprint(variables)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        load_safetensors(path)
    with pytest.raises(UserError, match="no such file"):
        load_safetensors(tmp_path / "absent.safetensors")


def test_amiss_tensors_are_named(pair):
    model, config, _ = pair
    state = numpy_state(model)
    name = "decoder.layers.0.conv.bias"
    with pytest.raises(UserError, match=f"{name} is missing"):
        encodec.from_torch(config, {k: v for k, v in state.items() if k != name})
    with pytest.raises(UserError, match=rf"{name} has shape \(1,\), expected"):
        encodec.from_torch(config, {**state, name: np.zeros(1)})
    with pytest.raises(UserError, match=r"extra\.tensor has no place"):
        encodec.from_torch(config, {**state, "extra.tensor": np.zeros(1)})


@pytest.mark.parametrize(
    ("name", "arg", "peer", "published"),
    [
        ("encodec_24khz", "", {}, 14_851_810),
        (
            "encodec_32khz",
            "",
            dict(
                sampling_rate=32000,
                num_filters=64,
                upsampling_ratios=[8, 5, 4, 4],
                codebook_size=2048,
                use_causal_conv=False,
                target_bandwidths=[2.2],
            ),
            57_584_834,
        ),
        (
            "encodec_32khz",
            "musicgen",
            dict(
                sampling_rate=32000,
                num_filters=64,
                upsampling_ratios=[8, 5, 4, 4],
                codebook_size=2048,
                use_causal_conv=False,
                use_conv_shortcut=False,
                target_bandwidths=[2.2],
            ),
            56_884_674,
        ),
        (
            "encodec_48khz",
            "",
            dict(
                sampling_rate=48000,
                audio_channels=2,
                norm_type="time_group_norm",
                use_causal_conv=False,
                normalize=True,
                chunk_length_s=1.0,
                overlap=0.01,
                target_bandwidths=[3.0, 6.0, 12.0, 24.0],
            ),
            14_856_294,
        ),
    ],
)
def test_full_size(name, arg, peer, published):
    """Named config = released config, and as many parameters as the peer counts (codebooks are
    buffers there).
    """
    import importlib

    from mgen.codec.model import CodecConfig

    experiment = importlib.import_module(f"mgen.configs.codec.{name}").get_config(arg)
    config = CodecConfig.from_config(experiment.model)
    with torch.device("meta"):
        model = transformers.EncodecModel(transformers.EncodecConfig(**peer))
    count = sum(p.numel() for p in model.parameters())
    shapes = jax.eval_shape(lambda key: init_codec(config, key), jax.random.key(0))
    assert tree.size(shapes["params"]) == count == published
    released = encodec.config(model.config.to_dict())
    training = dict(
        quantizer_dropout=config.quantizer_dropout, dropout_choices=config.dropout_choices
    )
    assert released.replace(**training) == config
