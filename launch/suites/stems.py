"""MSDM's U-Net against audio-diffusion-pytorch's `UNet1d` at full width, what sampling costs beyond
the calls of its network, and a mix taken apart in latents against on the waveform.

Both networks hold the same random float32 weights and read the same 65,536 samples of four stems,
with as many threads as there are cores; the peer runs forward in inference mode. Their outputs and
the norms of their gradients must agree. Turns alternate.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mgen import tracks
from mgen.codec.config import CodecConfig
from mgen.codec.model import Codec, init_codec
from mgen.configs.stems import tiny_latent, tiny_msdm
from mgen.errors import UserError
from mgen.interop import audio_diffusion
from mgen.interop.audio_diffusion import FIELDS, FIXED
from mgen.stems.config import UNetConfig
from mgen.stems.latent_sample import LatentStems
from mgen.stems.model import StemsConfig, init_params
from mgen.stems.sample import FrozenStems
from mgen.stems.separating import keys_of
from mgen.stems.settings import SamplingConfig
from mgen.stems.unet import UNet1d
from mgen.train.checkpoint import make_task

TURNS = 3
# log(sigma) / 4 of the noise.
NOISE = -0.5


class Sizes(NamedTuple):
    """Width of the U-Net, samples that it reads, steps of the sampling; seconds of the mix and
    steps in which it is taken apart."""

    width: int = 256
    samples: int = 65536
    steps: int = 150
    seconds: float = 20.0
    separation: int = 10


FULL, SMOKE = Sizes(), Sizes(128, 8192, 4, 3.0, 2)


def run(sizes: Sizes = FULL) -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}."""
    try:
        import audio_diffusion_pytorch as released
        import torch
    except ImportError as error:
        raise UserError(f"stems: {error}; install the extra `parity`") from error
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    width, samples, *_ = sizes
    shape = UNetConfig(width=width)
    released_fields = {theirs: getattr(shape, ours) for ours, theirs in FIELDS.items()}
    arguments = dict(
        in_channels=shape.stems, kernel_sizes_init=[1, 3, 7], **FIXED, **released_fields
    )
    model = released.UNet1d(**arguments).eval()
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    config = audio_diffusion.config(arguments)
    params = audio_diffusion.from_torch(config, state)["params"]
    x = np.random.default_rng(0).standard_normal((1, config.stems, samples, 1), np.float32)
    ours, peer = _ours(config, params, x), _peer(model, x)
    rows = []
    for case, *turns in zip(("forward", "forward+backward"), ours, peer):
        calls = (1 / seconds for seconds in _compare(*turns))
        rows.append(_row(f"{case}, UNet1d of width {width}, {samples} samples", "calls/s", *calls))
    return [*rows, _overhead(sizes.steps), _latent(sizes.seconds, sizes.separation)]


def _row(case: str, unit: str, ours: float, peer: float) -> dict[str, Any]:
    return dict(suite="stems", case=case, unit=unit, ours=ours, peer=peer, ratio=ours / peer)


def _turns(*sides: Callable[[], Any]) -> tuple[list[float], list[Any]]:
    """Median seconds of each side, and what each gives; the first turn compiles and warms up."""
    seconds: list[list[float]] = [[] for _ in sides]
    results: list[Any] = []
    for _ in range(TURNS + 1):
        results = []
        for side, work in zip(seconds, sides):
            start = time.perf_counter()
            results.append(work())
            side.append(time.perf_counter() - start)
    return [statistics.median(side[1:]) for side in seconds], results


def _compare(ours: Callable[[], Any], peer: Callable[[], Any]) -> list[float]:
    seconds, results = _turns(ours, peer)
    # Float32 in another order through some 40 layers, values of order 1.
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-3)
    return seconds


def _ours(config: UNetConfig, params: Any, x: np.ndarray) -> tuple[Callable[[], Any], ...]:
    network, stems, noise = UNet1d(config), jnp.asarray(x), jnp.full((1,), NOISE)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(network.apply({"params": params}, stems, noise)))

    forward = jax.jit(lambda params: network.apply({"params": params}, stems, noise))
    gradient = jax.jit(jax.grad(loss))

    def backward() -> float:
        leaves = jax.tree.leaves(jax.block_until_ready(gradient(params)))
        return np.sqrt(sum(float(jnp.vdot(leaf, leaf)) for leaf in leaves))

    return lambda: np.asarray(forward(params))[..., 0], backward


def _peer(model: Any, x: np.ndarray) -> tuple[Callable[[], Any], ...]:
    import torch

    stems, noise = torch.from_numpy(x[..., 0]), torch.full((1,), NOISE)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return model(stems, noise).numpy()

    def backward() -> float:
        model.zero_grad()
        model(stems, noise).square().mean().backward()
        return np.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))

    return forward, backward


def _overhead(steps: int) -> dict[str, Any]:
    """A scan of `steps` evaluations against as many calls of the network, of the tiny model."""
    config = tiny_msdm.get_config()
    own = StemsConfig.from_experiment(config)
    params = jax.jit(lambda key: init_params(own, key))(jax.random.key(0))
    model = FrozenStems.from_trained(config, params, {})
    x = jnp.zeros((1, *own.shape))
    level = jnp.full((1, 1, 1, 1), 0.1)
    denoise = jax.jit(lambda model, x: model.denoise(x, level))
    sampling = SamplingConfig(steps=steps)

    def scan() -> Any:
        made = model.generate_windows(keys_of([0]), jnp.zeros(1, jnp.int32), sampling=sampling)
        return jax.block_until_ready(made)

    def calls() -> Any:
        y = x
        for _ in range(steps):
            y = denoise(model, y)
        return jax.block_until_ready(y)

    (ours, peer), _ = _turns(scan, calls)
    case = f"sampling in {steps} steps, tiny_msdm, against {steps} calls of the network"
    return _row(case, "samplings/s", 1 / ours, 1 / peer)


def _latent(seconds: float, steps: int) -> dict[str, Any]:
    """Equal steps by the tiny models, untrained: of latents beside those of the mix, with the
    codec, and of the waveform by MSDM's likelihood."""
    latent = make_task(tiny_latent.get_config())
    state = jax.jit(latent.init)(jax.random.key(0))
    codec = CodecConfig.from_config(latent.config.codec.model)
    weights = jax.jit(lambda key: init_codec(codec, key))(jax.random.key(1))
    variables = state.variables | {"codec": weights}
    ours = LatentStems.from_trained(latent.config, state.params, variables, Codec(codec))
    config = tiny_msdm.get_config()
    params = jax.jit(lambda key: init_params(StemsConfig.from_experiment(config), key))
    peer = FrozenStems.from_trained(config, params(jax.random.key(0)), {})
    mix = 0.1 * np.random.default_rng(0).standard_normal((1, int(16000 * seconds), 1), np.float32)

    def run(model: Any, kind: str) -> Callable[[], Any]:
        settings, _ = tracks.separation(model, kind, changes={"steps": steps})
        return lambda: model.separate(mix, seeds=[0], **settings)

    sides, _ = _turns(run(ours, "track"), run(peer, "dirac"))
    case = f"{seconds:g} s taken apart in {steps} steps, tiny_latent against tiny_msdm"
    return _row(case, "s of audio/s", *(seconds / side for side in sides))
