"""What a training step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mgen.typing import Array, Params


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint must hold for training to go on bit-identically.

    Attributes:
      step: int32 scalar, updates done.
      params: trainable parameters, a plain nested dict. A GAN task keeps {"generator": ...,
          "discriminator": ...}.
      opt_state: optax state of the same optimiser(s).
      variables: Linen collections that no gradient reaches ({"codebook": ...}); {} where there are
          none.
      ema: exponential moving average of `params` (of the generator for a GAN), or None.
    """

    step: Array
    params: Params
    opt_state: Any
    variables: Params
    ema: Params | None = None

    @property
    def inference_params(self) -> Params:
        """The averaged parameters where they are kept, the raw ones otherwise."""
        return self.params if self.ema is None else self.ema


def ema_init(params: Params) -> Params:
    """The average of one state, float32. A copy: the state is donated, and one buffer cannot be
    donated twice."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)


def ema_update(ema: Params | None, params: Params, decay: float, step: Array) -> Params | None:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step)), so that early
    averages forget the init."""
    if ema is None:
        return None
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + (1.0 - d).astype(e.dtype) * (p - e), ema, params)
