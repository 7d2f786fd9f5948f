"""Times t_0 > ... > t_N of a sampler's N steps, float64 [N + 1] on the host; the last is always 0.

`karras` and `exponential` come down to t_min in N - 1 steps and jump to 0 in the last, so t_min is
the lowest noise that the network sees; `linear` has N equal steps down to 0.
"""

import numpy as np

from mgen.errors import UserError
from mgen.typing import Float, ndarray


def karras(steps: int, t_min: float, t_max: float, rho: float = 7.0) -> Float[ndarray, " N_plus_1"]:
    """Equal steps of t^(1 / rho) (Karras et al. 2022, equation 5), then 0."""
    _check(steps, t_min, t_max)
    ends = t_max ** (1 / rho), t_min ** (1 / rho)
    return np.append(np.linspace(*ends, steps) ** rho, 0.0)


def exponential(steps: int, t_min: float, t_max: float) -> Float[ndarray, " N_plus_1"]:
    """Equal steps of log t, then 0."""
    _check(steps, t_min, t_max)
    return np.append(np.geomspace(t_max, t_min, steps), 0.0)


def linear(steps: int, t_max: float = 1.0) -> Float[ndarray, " N_plus_1"]:
    """Equal steps from t_max to 0."""
    if steps < 1 or t_max <= 0.0:
        raise UserError(f"schedule of {steps} steps from {t_max}, expected at least 1 from above 0")
    return np.linspace(t_max, 0.0, steps + 1)


def shifted(times: Float[ndarray, " N_plus_1"], shift: float) -> Float[ndarray, " N_plus_1"]:
    """Times of a rectified flow with sigma / alpha multiplied by `shift`: more of them at high
    noise where it is above 1 (SD3, Esser et al. 2024, equation 23). 0 and 1 stay."""
    return shift * times / (1.0 + (shift - 1.0) * times)


def _check(steps: int, t_min: float, t_max: float) -> None:
    if steps < 1 or not 0.0 < t_min < t_max:
        raise UserError(
            f"schedule of {steps} steps, t_min {t_min}, t_max {t_max}: expected at least 1 step and"
            " 0 < t_min < t_max"
        )
