"""What every tower gives, and the checks that their configs share."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mgen.errors import UserError
from mgen.nn import transformer
from mgen.typing import Array, Bool, Float

# Fields that several towers have, and what they may be.
CHOICES = {
    "activation": tuple(transformer.ACTIVATIONS),
    "norm": ("layer", "rms"),
    "norm_position": ("pre", "post"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", *transformer.REMAT_POLICIES),
}


class Embedded(NamedTuple):
    """Output of a tower.

    Attributes:
      pooled: one float32 vector an example.
      tokens: the sequence or map that it was pooled from, in the tower's compute dtype.
      mask: True where `tokens` hold something; None stands for everywhere.
    """

    pooled: Float[Array, "B D"]
    tokens: Float[Array, "B L D"]
    mask: Bool[Array, "B L"] | None = None


def check_choices(config: Any, where: str, extra: Mapping[str, tuple[str, ...]]) -> None:
    """Raises `UserError` naming the first field of `config` (found in an experiment config under
    `where`) that is none of its choices, `CHOICES` and `extra`."""
    for field, allowed in {**CHOICES, **extra}.items():
        value = getattr(config, field, allowed[0])
        if value not in allowed:
            raise UserError(f"{where}.{field} is {value!r}, expected one of {list(allowed)}")


def check_heads(dim: int, heads: int, where: str) -> None:
    if dim % heads:
        raise UserError(f"{where}.heads is {heads}, expected a divisor of dim {dim}")
