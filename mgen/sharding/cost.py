"""What a program costs, counted from its text: operations from the jaxpr, bytes between devices
from the compiled HLO. Bodies of loops count as often as they run, which XLA's own analysis
(`compiled.cost_analysis()`) does not do.
"""

import math
import re
from collections import defaultdict
from typing import Any

import jax.numpy as jnp

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)


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


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALL = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?\s*[:=]\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)')
_SHAPE = re.compile(r"\b([a-z]+\d+|pred)(?:e\d+m\d+\w*)?\[([\d,]*)\]")
_OPERATION = re.compile(r"= (.*?) ([a-z][\w\-]*)\(")


def collective_bytes(hlo: str, trips: int = 1) -> dict[str, float]:
    """Bytes that a device receives by each kind of collective in a run of a compiled program
    (`compiled.as_text()`): the size of each result, times how often it is computed; `trips` where
    the program does not say."""
    own: dict[str, defaultdict[str, float]] = {}
    calls: dict[str, list[tuple[str, int]]] = {}
    current = entry = ""
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line.strip()):
            current = found[2]
            entry = current if found[1] else entry
            own[current], calls[current] = defaultdict(float), []
        elif current and (operation := _OPERATION.search(line)):
            kind = operation[2].removesuffix("-start")
            if kind in COLLECTIVES:
                own[current][kind] += _bytes(operation[1])
            known = _TRIPS.search(line)
            times = int(known[1]) if known else trips if operation[2] == "while" else 1
            names = _CALL.findall(line)
            for branches in _BRANCHES.findall(line):
                names += [name.strip(" %") for name in branches.split(",")]
            calls[current] += [(name, times) for name in names]
    totals: dict[str, defaultdict[str, float]] = {}

    def total(name: str) -> defaultdict[str, float]:
        if name not in totals:
            totals[name] = defaultdict(float, own.get(name, {}))
            for called, times in calls.get(name, []):
                for kind, size in total(called).items():
                    totals[name][kind] += times * size
        return totals[name]

    return dict(total(entry))


def _bytes(shapes: str) -> float:
    """The largest array of a result: an asynchronous start also lists its operands."""
    sizes = [0.0]
    for dtype, dims in _SHAPE.findall(shapes):
        width = 1 if dtype in ("pred", "f8") else jnp.dtype(_NAMES.get(dtype, dtype)).itemsize
        sizes.append(width * math.prod(int(size) for size in dims.split(",") if size))
    return max(sizes)


_NAMES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"s{bits}": f"int{bits}" for bits in (4, 8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (4, 8, 16, 32, 64)},
    **{"bf16": "bfloat16", "c64": "complex64", "c128": "complex128"},
}
