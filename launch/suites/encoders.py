"""Music encoder at MERT-95M's shape against transformers' `HubertModel`, and the log-mel front end
against one on `torch.stft`.

Both encoders hold the same random float32 weights and hear the same 5 s of 24 kHz audio, with as
many threads as there are cores and without dropout; the peer attends with PyTorch's fused kernel
("sdpa") and runs forward in inference mode. Their outputs and the norms of their gradients must
agree. Turns alternate.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.audio import mel
from mgen.errors import UserError
from mgen.interop import hubert
from mgen.semantic.config import MelConfig
from mgen.semantic.frontend import log_mel
from mgen.semantic.model import Encoder

SAMPLE_RATE = 24000
SECONDS = 5
MEL_SECONDS = 30
BATCHES = (1, 2)
TURNS = 3


def run() -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}: seconds of audio a second."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"encoders: {error}; install the extra `parity`") from error
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    shape = transformers.HubertConfig(attn_implementation="sdpa")
    model = transformers.HubertModel(shape).eval()
    config = hubert.hubert_config(shape, SAMPLE_RATE, scan=False)
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    params = hubert.hubert_params(config, state)
    rows = []
    for batch in BATCHES:
        audio = _audio(batch, SECONDS)
        ours, peer = _ours(Encoder(config), params, audio), _peer(model, audio)
        for case, ours_turn, peer_turn in zip(("forward", "forward+backward"), ours, peer):
            seconds = _compare(ours_turn, peer_turn)
            name = f"{case}, MERT-95M shape, batch {batch}"
            rows.append(_row(name, batch * SECONDS, seconds))
    settings = MelConfig(hop=240)
    audio = _audio(2, MEL_SECONDS)
    seconds = _compare(_our_mel(settings, audio), _peer_mel(settings, audio))
    rows.append(_row("log-mel, 128 bins of 2048 samples", 2 * MEL_SECONDS, seconds))
    return rows


def _audio(batch: int, seconds: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 0.1 * rng.standard_normal((batch, seconds * SAMPLE_RATE), dtype=np.float32)


def _row(case: str, audio_seconds: int, seconds: tuple[float, float]) -> dict[str, Any]:
    ours, peer = (audio_seconds / value for value in seconds)
    return dict(
        suite="encoders", case=case, unit="s of audio/s", ours=ours, peer=peer, ratio=ours / peer
    )


def _compare(ours: Callable[[], Any], peer: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of either side's turns, which alternate so that a busy machine slows them
    alike; the results must agree."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS + 1):  # The first turn compiles and warms up.
        results = []
        for side, work in zip(seconds, (ours, peer)):
            start = time.perf_counter()
            results.append(work())
            side.append(time.perf_counter() - start)
        # Float32 in another order over 12 layers, values of order 1.
        np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-3)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def _ours(encoder: Encoder, params: Any, audio: np.ndarray) -> tuple[Callable[[], Any], ...]:
    waveform = jnp.asarray(audio)[..., None]

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(encoder.apply({"params": params}, waveform)))

    forward = jax.jit(lambda params: encoder.apply({"params": params}, waveform))
    gradient = jax.jit(jax.grad(loss))

    def backward() -> np.ndarray:
        grads = jax.block_until_ready(gradient(params))
        return _norms(grads["front"]["convs"]["conv_0"], grads["positions"], grads["projection"])

    return lambda: np.asarray(forward(params)), backward


def _peer(model: Any, audio: np.ndarray) -> tuple[Callable[[], Any], ...]:
    import torch

    waveform = torch.from_numpy(audio)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return model(waveform).last_hidden_state.numpy()

    def backward() -> np.ndarray:
        model.zero_grad()
        model(waveform).last_hidden_state.square().mean().backward()
        modules = (
            model.feature_extractor.conv_layers[0].conv,
            model.encoder.pos_conv_embed.conv,
            model.feature_projection.projection,
        )
        return _norms(*([p.grad.numpy() for p in module.parameters()] for module in modules))

    return forward, backward


def _norms(*groups: Any) -> np.ndarray:
    """Euclidean norm of each group of gradients over the norm of them all."""
    squares = np.asarray(
        [sum(float(np.square(x).sum()) for x in jax.tree.leaves(group)) for group in groups]
    )
    return np.sqrt(squares / squares.sum())


def _our_mel(settings: MelConfig, audio: np.ndarray) -> Callable[[], np.ndarray]:
    waveform = jnp.asarray(audio)
    compute = jax.jit(lambda x: log_mel(settings, SAMPLE_RATE, x))
    return lambda: np.asarray(compute(waveform))


def _peer_mel(settings: MelConfig, audio: np.ndarray) -> Callable[[], np.ndarray]:
    import torch

    waveform, window = torch.from_numpy(audio), torch.hann_window(settings.n_fft)
    filters = mel.filterbank(SAMPLE_RATE, settings.n_fft, settings.n_mels)
    filters = torch.from_numpy(filters.T.copy())

    def compute() -> np.ndarray:
        with torch.inference_mode():
            spectrum = torch.stft(
                waveform,
                settings.n_fft,
                settings.hop,
                window=window,
                pad_mode="constant",
                return_complex=True,
            )
            power = torch.view_as_real(spectrum).square().sum(-1)
            logs = (filters @ power).clamp_min(settings.floor).log()
            logs = (logs - settings.mean) / settings.std
            return logs[..., : audio.shape[1] // settings.hop].transpose(1, 2).numpy()

    return compute
