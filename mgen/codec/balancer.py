"""Loss weights as shares of the gradient at the output audio.

EnCodec (arXiv:2210.13438), section 3.4, "Balancer".

With g_i = d loss_i / d audio and w_i the weights,

    (1)  n_i <- b n_i + (1 - b) mean over the batch of ||g_i||_2,    <n_i> = n_i / (1 - b^t)
    (2)  g   =  R sum_i (w_i / sum_j w_j) g_i / <n_i>

so that loss i makes up the share w_i / sum w of the gradient that reaches the generator, whatever
the scale of the loss.
"""

from typing import Any

import jax.numpy as jnp

from mgen.typing import Array, Float

State = dict[str, dict[str, Array]]

EPSILON = 1e-12


def init(names: tuple[str, ...]) -> State:
    """State before the first update: `total` is n_i of (1), `weight` its correction 1 - b^t."""
    return {name: {"total": jnp.zeros(()), "weight": jnp.zeros(())} for name in names}


def balance(
    gradients: dict[str, Float[Array, "B T C"]],
    weights: dict[str, Any],
    state: State,
    decay: float = 0.999,
    total_norm: float = 1.0,
) -> tuple[Float[Array, "B T C"], State, dict[str, Array]]:
    """The balanced gradient of (2), the new state, and {name: <n_i>}.

    A loss whose gradient is zero (the adversarial ones before the discriminator starts) takes no
    part: its state and the shares of the others stay as if it were absent.
    """
    new_state, norms, shares = {}, {}, {}
    for name, gradient in gradients.items():
        norm = jnp.mean(jnp.sqrt(jnp.sum(jnp.square(gradient), axis=(1, 2))))
        active = norm > 0
        moved = {
            "total": decay * state[name]["total"] + (1 - decay) * norm,
            "weight": decay * state[name]["weight"] + (1 - decay),
        }
        new_state[name] = {
            field: jnp.where(active, value, state[name][field]) for field, value in moved.items()
        }
        norms[name] = new_state[name]["total"] / jnp.maximum(new_state[name]["weight"], EPSILON)
        shares[name] = jnp.where(active, weights[name], 0.0)
    total_share = jnp.maximum(sum(shares.values()), EPSILON)
    scales = {
        name: total_norm * share / total_share / jnp.maximum(norms[name], EPSILON)
        for name, share in shares.items()
    }
    balanced = jnp.sum(jnp.stack([scales[n] * g for n, g in gradients.items()]), axis=0)
    return balanced, new_state, norms
