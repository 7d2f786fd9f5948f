"""Our U-Net over stems with the weights of audio-diffusion-pytorch's `UNet1d`: same output, same
gradient. Random weights, small sizes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgen.errors import UserError
from mgen.interop import audio_diffusion
from mgen.stems.config import UNetConfig
from mgen.stems.unet import UNet1d

torch = pytest.importorskip("torch")
released = pytest.importorskip("audio_diffusion_pytorch")
pytestmark = pytest.mark.parity
# float32 sums over up to 300 terms in another order, through up to 40 layers; the outputs are of
# order 1.
TOLERANCE = 1e-5
MSDM = dict(
    in_channels=4,
    channels=256,
    patch_blocks=1,
    patch_factor=16,
    multipliers=[1, 2, 4, 4, 4, 4, 4],
    factors=[4, 4, 4, 2, 2, 2],
    num_blocks=[2, 2, 2, 2, 2, 2],
    attentions=[False, False, False, True, True, True],
    attention_heads=8,
    attention_features=128,
    attention_multiplier=2,
    resnet_groups=8,
    kernel_multiplier_downsample=2,
    kernel_sizes_init=[1, 3, 7],
    use_nearest_upsample=False,
    use_skip_scale=True,
    use_attention_bottleneck=True,
    use_context_time=True,
)
CASES = {
    "small": dict(
        channels=16,
        patch_factor=4,
        multipliers=[1, 2, 4],
        factors=[4, 2],
        num_blocks=[2, 2],
        attentions=[False, True],
        attention_heads=2,
        attention_features=8,
        resnet_groups=4,
    ),
    # One stem, odd factors and none, attention first, another number of blocks in each level.
    "odd": dict(
        in_channels=1,
        channels=18,
        patch_factor=6,
        multipliers=[1, 2, 2, 1],
        factors=[3, 1, 5],
        num_blocks=[3, 1, 2],
        attentions=[True, False, True],
        attention_heads=3,
        attention_features=5,
        attention_multiplier=3,
        resnet_groups=3,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    """(their model, our config, our variables)."""
    arguments = MSDM | CASES[request.param]
    torch.manual_seed(0)
    model = released.UNet1d(**arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight", ".g")):
                parameter += 0.2 * torch.randn_like(parameter)
    config = audio_diffusion.config(arguments)
    return model, config, audio_diffusion.from_torch(config, numpy_state(model))


def numpy_state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def inputs(config):
    """Two examples of two frames in the bottleneck, one at a low and one at a high level."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, config.stems, 2 * config.hop, 1)).astype(np.float32)
    return x, np.asarray([-1.7, 0.7], np.float32)


def test_output_and_gradient(pair):
    model, config, variables = pair
    x, noise = inputs(config)
    theirs = torch.from_numpy(x[..., 0]).requires_grad_()
    expected = model(theirs, torch.from_numpy(noise))
    expected.square().sum().backward()

    def square(x):
        out = UNet1d(config).apply(variables, x, jnp.asarray(noise))
        return jnp.sum(jnp.square(out)), out

    gradient, out = jax.jit(jax.grad(square, has_aux=True))(x)
    assert 0.2 < np.std(out) < 5
    np.testing.assert_allclose(out[..., 0], expected.detach(), rtol=0, atol=TOLERANCE)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(gradient[..., 0], theirs.grad, rtol=0, atol=TOLERANCE * scale)


def test_our_init_has_their_tree(pair):
    _, config, variables = pair
    x, noise = inputs(config)
    shapes = jax.eval_shape(UNet1d(config).init, jax.random.key(0), x, noise)
    assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("pair", ["small"], indirect=True)
def test_tracks_at_equal_levels_are_the_released_model(pair):
    model, config, _ = pair
    tracks = dataclasses.replace(config, per_track=True)
    x, noise = inputs(config)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x[..., 0]), torch.from_numpy(noise)).numpy()
    variables = audio_diffusion.from_torch(tracks, numpy_state(model))
    levels = np.repeat(noise[:, None], tracks.stems, axis=1)
    out = jax.jit(UNet1d(tracks).apply)(variables, x, levels)
    np.testing.assert_allclose(out[..., 0], expected, rtol=0, atol=TOLERANCE)


def test_names_in_a_checkpoint(pair):
    """Theirs holds the network twice, inside the model and inside its diffusion."""
    model, config, variables = pair
    state = {}
    for name, tensor in numpy_state(model).items():
        state |= {f"model.unet.{name}": tensor, f"model.diffusion.net.{name}": tensor}
    read = audio_diffusion.from_torch(config, state, prefix="model.unet.")
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_amiss_tensors_are_named(pair):
    model, config, _ = pair
    state = numpy_state(model)
    name = "downsamples.0.blocks.0.block1.groupnorm.bias"
    with pytest.raises(UserError, match=f"{name} is missing"):
        audio_diffusion.from_torch(config, {k: v for k, v in state.items() if k != name})
    with pytest.raises(UserError, match=r"extra\.tensor has no place"):
        audio_diffusion.from_torch(config, {**state, "extra.tensor": np.zeros(1)})


def test_full_size():
    with torch.device("meta"):
        model = released.UNet1d(**MSDM)
    assert sum(parameter.numel() for parameter in model.parameters()) == 405_497_700
    assert audio_diffusion.config(MSDM) == UNetConfig()


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(UserError, match="patch_blocks is 4, expected 1"):
        audio_diffusion.config(MSDM | {"patch_blocks": 4})
