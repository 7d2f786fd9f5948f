"""Encoding and decoding 10 s with EnCodec's full-size 24 and 32 kHz codecs against transformers'
`EncodecModel`.

The same random weights on both sides, float32, batch 1, all codebooks, as many threads as there are
cores; runs alternate. The peer runs in inference mode with its weight norm removed, as ours is
folded. It is not compiled: `torch.compile` slowed its encoder and gained 2% in its decoder
(BENCHMARKS.md).
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SECONDS = 10
# Timed runs of each, after warm-up; the median counts.
RUNS = 5
# What `EncodecConfig` needs beyond its defaults, which are those of the 24 kHz model.
PEERS: dict[str, dict[str, Any]] = {
    "24 kHz": {},
    "32 kHz": dict(
        sampling_rate=32000,
        num_filters=64,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        use_causal_conv=False,
        use_conv_shortcut=False,
        target_bandwidths=[2.2],
    ),
}


def run() -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}; the unit is seconds of audio a second."""
    rows = []
    for name, fields in PEERS.items():
        for operation, contestants in _contestants(fields).items():
            medians = _alternate(contestants)
            ours, peer = (SECONDS / medians[name] for name in ("ours", "peer"))
            rows.append(
                dict(
                    suite="codec",
                    case=f"{operation} {SECONDS} s, EnCodec {name}, batch 1",
                    unit="x real time",
                    ours=ours,
                    peer=peer,
                    ratio=ours / peer,
                )
            )
    return rows


def _contestants(fields: dict[str, Any]) -> dict[str, dict[str, Callable[[], Any]]]:
    """Per operation, the functions "ours" and "peer"."""
    import torch
    import transformers
    from torch.nn.utils import parametrize

    from mgen.codec.sample import FrozenCodec
    from mgen.interop import encodec

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    model = transformers.EncodecModel(transformers.EncodecConfig(**fields)).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    config = encodec.config(model.config.to_dict())
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    variables = encodec.from_torch(config, state)
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    codec = FrozenCodec(config, variables["params"], {"codebook": variables["codebook"]})

    shape = (1, SECONDS * config.sample_rate, config.channels)
    audio = 0.1 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    peer_audio = torch.from_numpy(audio).mT.contiguous()
    bandwidth = model.config.target_bandwidths[-1]
    with torch.inference_mode():
        peer_codes = model.encode(peer_audio, bandwidth=bandwidth).audio_codes
    codes = np.ascontiguousarray(peer_codes[0].mT.numpy().astype(np.int32))
    return {
        "encode": {
            "ours": lambda: codec.encode(audio).block_until_ready(),
            "peer": lambda: model.encode(peer_audio, bandwidth=bandwidth),
        },
        "decode": {
            "ours": lambda: codec.decode(codes).block_until_ready(),
            "peer": lambda: model.decode(peer_codes, [None]),
        },
    }


def _alternate(contestants: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, run in turns so that a busy machine slows all of them alike."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.inference_mode():
        for turn in range(RUNS + 1):
            for name, contestant in contestants.items():
                start = time.perf_counter()
                contestant()
                if turn:  # The first one warms up.
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
