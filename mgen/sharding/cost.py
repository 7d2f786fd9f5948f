"""What a program computes, counted from its jaxpr. Bodies of loops count as often as they run,
which XLA's own analysis (`compiled.cost_analysis()`) does not do. (What it moves: `hlo`.)
"""

import math
from typing import Any


def flops(jaxpr: Any, trips: int = 1) -> float:
    """Multiplications and additions of the matrix products and convolutions of a (closed) jaxpr.

    A `while` counts `trips` times, a `cond` as its dearest branch, a kernel once for each step of
    its grid.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(equation, trips) for equation in jaxpr.eqns)


def _of_equation(equation: Any, trips: int) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracting, _), _) = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        summed = math.prod(lhs[axis] for axis in contracting)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * summed
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        _, rhs, _ = params["dimension_numbers"]
        summed = math.prod(kernel) / kernel[rhs[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * summed
    if name == "cond":
        return max(flops(branch, trips) for branch in params["branches"])
    inner = sum(flops(value, trips) for value in _jaxprs(params))
    if name == "pallas_call":
        return inner * math.prod(params["grid_mapping"].grid)
    if name == "while":
        return inner * trips
    if name == "scan":
        return inner * params["length"]
    if name == "shard_map":
        return inner * params["mesh"].size
    return inner


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                found.append(part)
    return found
