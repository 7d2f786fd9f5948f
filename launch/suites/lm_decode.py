"""Token language model at MusicGen small's shape against transformers' `MusicgenForCausalLM`.

Both hold the same random float32 weights, cross-attend to the same 768-wide vectors and decode
greedily from the same prompt, as many threads as there are cores; their logits must agree. The peer
runs in inference mode with its key-value cache, not compiled: `torch.compile` gained 4% at batch 1
and lost 18% at batch 8 (BENCHMARKS.md). Turns alternate.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.interop import musicgen
from mgen.lm import decode
from mgen.lm.condition import Condition
from mgen.lm.config import LMConfig
from mgen.lm.sample import FrozenLM

VECTORS = 16
TEXT_WIDTH = 768  # of T5-base
SLOTS = np.arange(4)[None]  # a step holds all codebooks


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Attributes:
      prompt: positions in the cache before the first timed step; steps: of a turn.
      turns: timed runs of each side, after one that compiles; the median counts.
      batches: rows; one clip with classifier-free guidance has 2.
      shape: fields of transformers' `MusicgenDecoderConfig`, whose defaults are those of small.
    """

    prompt: int = 64
    steps: int = 8
    turns: int = 3
    batches: tuple[int, ...] = (1, 2, 8)
    shape: dict[str, int] = dataclasses.field(default_factory=dict)


FULL = Sizes()
SMOKE = Sizes(
    8, 2, 1, (2,), dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, ffn_dim=128)
)


def run(sizes: Sizes = FULL) -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}: decoded steps and prompt positions a second."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"lm_decode: {error}; install the extra `parity`") from error
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    shape = transformers.MusicgenDecoderConfig(**sizes.shape)
    with torch.inference_mode():
        model = transformers.MusicgenForCausalLM(shape).eval()
        projection = torch.nn.Linear(TEXT_WIDTH, shape.hidden_size)
    config = musicgen.lm_config(shape, condition_width=TEXT_WIDTH, scan=False)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    state |= {f"enc_to_dec_proj.{n}": p.numpy() for n, p in projection.state_dict().items()}
    frozen = FrozenLM.from_trained(config, musicgen.lm_params(config, state))
    rows = []
    for batch in sizes.batches:
        rng = np.random.default_rng(0)
        streams, codes = config.num_codebooks, config.codebook_size
        prompt = rng.integers(0, codes, (batch, sizes.prompt, streams), dtype=np.int32)
        vectors = rng.standard_normal((batch, VECTORS, TEXT_WIDTH), dtype=np.float32)
        ours = _Ours(frozen, prompt, vectors, sizes.steps)
        peer = _Peer(model, projection, prompt, vectors, sizes.steps)
        rows += _compare(ours, peer, sizes)
    return rows


def _compare(ours: "_Ours", peer: "_Peer", sizes: Sizes) -> list[dict[str, Any]]:
    """Both sides in turns, so that a busy machine slows them alike."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    for _ in range(sizes.turns + 1):  # The first turn compiles and warms up.
        timed("ours prefill", ours.prefill)
        timed("peer prefill", peer.prefill)
        logits = timed("ours decode", ours.decode)
        expected = timed("peer decode", peer.decode)
        # 24 layers of float32 sums in another order, logits of order 1.
        np.testing.assert_allclose(logits, expected, atol=1e-3)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    rows = []
    for operation, count in (("decode", sizes.steps), ("prefill", sizes.prompt)):
        rate = {side: count / medians[f"{side} {operation}"] for side in ("ours", "peer")}
        rows.append(
            dict(
                suite="lm_decode",
                case=f"{operation}, MusicGen of dim {ours.dim}, batch {ours.batch}",
                unit="steps/s" if operation == "decode" else "positions/s",
                **rate,
                ratio=rate["ours"] / rate["peer"],
            )
        )
    return rows


class _Ours:
    """`mgen.lm.decode`: prefill in one program, all greedy steps in another."""

    def __init__(self, model: FrozenLM, prompt: np.ndarray, vectors: np.ndarray, count: int):
        config, self.batch, length = model.config, len(prompt), prompt.shape[1]
        self.dim = config.dim
        condition = Condition(vectors=jnp.asarray(vectors), mask=jnp.ones(vectors.shape[:2], bool))
        empty = jnp.zeros((self.batch, config.num_codebooks, config.codebook_size))

        def prefill(weights: Any, condition: Condition, tokens: jax.Array) -> decode.Cache:
            cache = decode.init_cache(config.transformer, self.batch, length + count)
            cache = decode.remember_condition(config, weights, cache, condition)
            return _forward(config, weights, cache, condition, tokens, 0)[1]

        def steps(weights: Any, condition: Condition, cache: decode.Cache) -> jax.Array:
            def body(i: jax.Array, carry: Any) -> Any:
                tokens, _, cache = carry
                x, cache = _forward(config, weights, cache, condition, tokens[:, None], i)
                logits = decode.logits(config, weights, x, SLOTS)
                return logits.argmax(axis=-1).astype(jnp.int32), logits, cache

            start = jnp.zeros((self.batch, config.num_codebooks), jnp.int32)
            carry = (start, empty, cache)
            return jax.lax.fori_loop(length, length + count, body, carry)[1]

        prefill, steps = jax.jit(prefill), jax.jit(steps)
        self._prefill = lambda: prefill(model.weights, condition, jnp.asarray(prompt))
        self._steps = lambda cache: steps(model.weights, condition, cache)

    def prefill(self) -> None:
        self._cache = jax.block_until_ready(self._prefill())

    def decode(self) -> np.ndarray:
        """Logits [B, K, V] of the last step."""
        return np.asarray(self._steps(self._cache))


def _forward(
    config: LMConfig,
    weights: Any,
    cache: decode.Cache,
    condition: Condition,
    tokens: jax.Array,
    start: Any,
) -> tuple[jax.Array, decode.Cache]:
    positions = start + jnp.arange(tokens.shape[1])[None]
    x = decode.target(config, weights, condition, tokens, SLOTS[:, None], positions)
    x = decode.add_positions(config, x, positions)
    stack = weights["transformer"]
    return decode.forward(config.transformer, stack, cache, x, positions, start, condition.mask)


class _Peer:
    """transformers, eager: its cache grows by one position a step."""

    def __init__(
        self, model: Any, projection: Any, prompt: np.ndarray, vectors: np.ndarray, count: int
    ):
        import torch

        self._model, self._count = model, count
        self._batch, length, self._streams = prompt.shape
        self._prompt = torch.from_numpy(prompt.transpose(0, 2, 1).reshape(-1, length).copy())
        self._projection, self._vectors = projection, torch.from_numpy(vectors)

    def _run(self, tokens: Any, cache: Any) -> Any:
        return self._model(
            input_ids=tokens,
            encoder_hidden_states=self._condition,
            past_key_values=cache,
            use_cache=True,
        )

    def prefill(self) -> None:
        import torch

        with torch.inference_mode():
            self._condition = self._projection(self._vectors)
            self._cache = self._run(self._prompt, None).past_key_values

    def decode(self) -> np.ndarray:
        """Logits [B, K, V] of the last step."""
        import torch

        tokens = torch.zeros((self._batch * self._streams, 1), dtype=torch.long)
        with torch.inference_mode():
            for _ in range(self._count):
                logits = self._run(tokens, self._cache).logits[:, -1]
                tokens = logits.argmax(dim=-1, keepdim=True)
        return logits.reshape(self._batch, self._streams, -1).numpy()
