"""Token language model at MusicGen small's shape against transformers' `MusicgenForCausalLM`.

Both hold the same random float32 weights, decode greedily from the same condition at the same
context length, in turns in one process on the same threads; logits must agree. The peer runs in
inference mode with its key-value cache, eagerly and, where it is faster, compiled with a static
cache.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgen.errors import UserError
from mgen.interop import musicgen
from mgen.lm import decode
from mgen.lm.model import LMConfig
from mgen.lm.sample import FrozenLM

PROMPT = 64  # positions in the cache before the first timed step
STEPS = 8  # a turn
TURNS = 4
VECTORS = 16  # length of the condition
TEXT_WIDTH = 768  # of T5-base
BATCHES = (1, 8)


def run() -> list[dict[str, Any]]:
    """Rows {suite, case, unit, ours, peer, ratio}: steps a second and prompt positions a second."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"lm_decode: {error}; install the extra `parity`") from error
    torch.set_num_threads(len(jax_threads()))
    torch.manual_seed(0)
    shape = transformers.MusicgenDecoderConfig()
    model = transformers.MusicgenForCausalLM(shape).eval()
    projection = torch.nn.Linear(TEXT_WIDTH, shape.hidden_size)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for name, value in projection.named_parameters():
        state[f"enc_to_dec_proj.{name}"] = value.detach().numpy()
    config = musicgen.lm_config(shape, condition_width=TEXT_WIDTH, scan=False)
    frozen = FrozenLM.from_trained(config, musicgen.lm_params(config, state))
    rows = []
    for batch in BATCHES:
        rows += compare(Ours(frozen, batch), Peer(model, projection, batch), batch)
    return rows
