"""Loss weights as shares of the gradient at the output audio (EnCodec, arXiv:2210.13438, section 3.4, eq. 5).

With g_i = d loss_i / d audio and w_i the weights,

    (1)  n_i <- b n_i + (1 - b) mean_over_batch ||g_i||_2          bias corrected: <n_i> = n_i / (1 - b^t)
    (2)  g   =  R sum_i (w_i / sum_j w_j) g_i / <n_i>

so that loss i makes up the share w_i / sum w of the gradient that reaches the generator, whatever the scale of the loss.
"""

import jax
import jax.numpy as jnp

from mgen.typing import Array, Float

State = dict[str, dict[str, Array]]


def init(names: tuple[str, ...]) -> State:
    """State before the first update: `total` is n_i of (1), `weight` its bias correction 1 - b^t."""
    return {name: {"total": jnp.zeros(()), "weight": jnp.zeros(())} for name in names}


def balance(
    gradients: dict[str, Float[Array, "B T C"]],
    weights: dict[str, float],
    state: State,
    decay: float = 0.999,
    total_norm: float = 1.0,
) -> tuple[Float[Array, "B T C"], State, dict[str, Array]]:
    """The balanced gradient of (2), the new state, and {name: <n_i>}.

    A loss whose gradient is zero (adversarial terms before the discriminator starts) takes no part: its state and the shares
    of the others stay as if it were absent.
    """
    norms = {
        name: jnp.mean(jnp.sqrt(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim)))))
        for name, g in gradients.items()
    }
    active = {name: norm > 0 for name, norm in norms.items()}
    new_state = {
        name: {
            key: jnp.where(active[name], decay * value + (1 - decay) * new, value)
            for key, value, new in (
                ("total", state[name]["total"], norms[name]),
                ("weight", state[name]["weight"], jnp.ones(())),
            )
        }
        for name in gradients
    }
    means = {name: s["total"] / jnp.maximum(s["weight"], 1e-12) for name, s in new_state.items()}
    total_weight = sum(weights[name] * active[name] for name in gradients)
    scales = {
        name: total_norm * weights[name] / jnp.maximum(total_weight, 1e-12) / (means[name] + 1e-12)
        for name in gradients
    }
    # A zero gradient has no scale: keep 0 * (1 / 1e-12) out of the sum in low precision.
    balanced = sum(jnp.where(active[name], scales[name], 0.0) * g for name, g in gradients.items())
    return jax.tree.map(jnp.asarray, balanced), new_state, means
