"""What a compiled program moves, counted from its text (`compiled.as_text()`): bytes between
devices and bytes to and from a device's memory, bodies of loops as often as they run.

XLA's own analysis (`compiled.cost_analysis()`) counts a body once and, on TPUs, what stays in the
chip's fast memory too; on GPUs it counts nothing.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict

import jax.numpy as jnp

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
# Instructions of control: what they call is instructions of the program, not parts of a fusion.
_CONTROL = ("while", "conditional", "call", "async-start")
# Instructions that move nothing themselves.
_FREE = (
    *_CONTROL, "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "partition-id", "replica-id", "opt-barrier", "async-update", "async-done",
)  # fmt: skip
# Instructions that read as much of their first operand as they make.
_PARTS = ("dynamic-slice", "slice", "gather")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?\s*[:=]\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)')
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)(?:e\d+m\d+\w*)?\[([\d,]*)\](\{[^{}]*\})?")
_ELSEWHERE = re.compile(r"S\([1-9]")
_NAMES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"s{bits}": f"int{bits}" for bits in (4, 8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (4, 8, 16, 32, 64)},
    **{"bf16": "bfloat16", "c64": "complex64", "c128": "complex128"},
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation: `rest` is what stands behind the opening parenthesis."""

    name: str
    shape: str
    kind: str
    rest: str

    @functools.cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

    @property
    def called(self) -> list[str]:
        names = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += [name.strip(" %") for name in branches.split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name; the last one is the result."""

    name: str
    body: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return list(self.body.values())[-1]

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        return {
            int(each.rest.partition(")")[0]): name
            for name, each in self.body.items()
            if each.kind == "parameter"
        }

    def origin(self, name: str) -> str:
        """Of what a value is a bitcast."""
        while name in self.body and self.body[name].kind == "bitcast":
            name = self.body[name].operands[0]
        return name

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found = defaultdict(list)
        for instruction in self.body.values():
            for operand in instruction.operands:
                found[operand].append(instruction)
        return found


@dataclasses.dataclass
class Program:
    """The computations of a program, callees before callers.

    Attributes:
      trips: of a loop of which the text does not say how often it runs.
    """

    computations: dict[str, Computation]
    entry: str
    trips: int = 1

    @classmethod
    def parse(cls, text: str, trips: int = 1) -> "Program":
        found: dict[str, Computation] = {}
        current, entry = "", ""
        for line in map(str.strip, text.splitlines()):
            if start := _COMPUTATION.match(line):
                current = start[2]
                entry = current if start[1] else entry
                found[current] = Computation(current, {})
            elif current and (instruction := _INSTRUCTION.match(line)):
                _, name, shape, kind, rest = instruction.groups()
                found[current].body[name] = Instruction(name, shape, kind, rest)
        return cls(found, entry, trips)

    @functools.cached_property
    def runs(self) -> dict[str, float]:
        """How often each computation runs; of a branch as if it were always taken."""
        runs = defaultdict(float, {self.entry: 1.0})
        for computation in reversed(self.computations.values()):
            for instruction in computation.body.values():
                times = self._trips(instruction) if instruction.kind == "while" else 1
                for name in instruction.called:
                    runs[name] += times * runs[computation.name]
        return runs

    def _trips(self, loop: Instruction) -> int:
        """Of a loop that counts up from 0: as its text or its condition says."""
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        names = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.rest))
        condition, body = (self.computations[names[key]] for key in ("condition", "body"))
        test = condition.root
        if test.kind != "compare" or "direction=LT" not in test.rest:
            return self.trips
        counter, limit = (condition.body.get(name) for name in test.operands)
        if counter is None or limit is None or limit.kind != "constant":
            return self.trips
        index = re.search(r"index=(\d+)", counter.rest)
        following = body.body.get(body.root.operands[int(index[1])]) if index else None
        return -(-int(limit.rest.partition(")")[0]) // _stride(body, following))

    def collective_bytes(self) -> dict[str, float]:
        """Bytes that a device receives by each kind of collective, in rings of many devices: the
        result of a gather, what goes into a scatter, twice what is reduced for all."""
        rarest: dict[str, tuple[float, str, float]] = {}
        for computation in self.computations.values():
            scatters = computation.name.startswith("all-reduce-scatter")
            for instruction in computation.body.values():
                kind = instruction.kind.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                kind = "reduce-scatter" if scatters else kind
                size = _received(kind, instruction, computation)
                # One that runs beside others stands in several places, the rarest is its start.
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                label = channel[1] if channel else f"{computation.name}/{instruction.name}"
                runs = self.runs[computation.name]
                if label not in rarest or runs < rarest[label][2]:
                    rarest[label] = (size, kind, runs)
        totals: defaultdict[str, float] = defaultdict(float)
        for size, kind, runs in rarest.values():
            totals[kind] += size * runs
        return {kind: size for kind, size in totals.items() if size}

    def traffic(self) -> float:
        """Bytes that a device moves to and from its memory: what each instruction (a fusion is one)
        reads and writes there. Of slices and updates in place only the part; a kernel's operands
        once; without the padding of tiles."""
        total = 0.0
        for name in self._unfused():
            computation = self.computations[name]
            moved = sum(self._moved(each, computation) for each in computation.body.values())
            total += moved * self.runs[name]
        return total

    def _unfused(self) -> list[str]:
        found = [self.entry]
        for name in found:
            for instruction in self.computations[name].body.values():
                if instruction.kind in _CONTROL:
                    found += [called for called in instruction.called if called not in found]
        return found

    def _moved(self, instruction: Instruction, computation: Computation) -> float:
        kind, body = instruction.kind, computation.body
        ended = kind.endswith("-done") or instruction.name.startswith("async-collective-done")
        if kind in _FREE or ended or "AllocateBuffer" in instruction.rest:
            return 0.0
        shapes = [body[name].shape if name in body else "" for name in instruction.operands]
        if kind.removesuffix("-start") in _PARTS:
            given = len(_arrays(shapes[0])) if kind.endswith("-start") else 0
            made = _arrays(instruction.shape)[given:]  # a start names what it is given too
            read = sum(size for size, _ in made) if any(_memory(shapes[0])) else 0.0
            return read + sum(size for size, here in made if here)
        if kind.endswith("-start"):
            return sum(_memory(instruction.shape))
        if kind == "dynamic-update-slice":
            return 2 * sum(_memory(shapes[1]))
        if kind != "fusion":
            return sum(sum(_memory(shape)) for shape in [instruction.shape, *shapes])
        fused = self.computations[instruction.called[0]]
        reads = (
            min(sum(_memory(shape)), self._read(fused, fused.parameters[i]))
            for i, shape in enumerate(shapes)
        )
        return sum(_written(fused, instruction.shape)) + sum(reads)

    def _read(self, fused: Computation, name: str) -> float:
        """Bytes that a fusion can read at most of one of its parameters."""
        total = 0.0
        for user in fused.users[name]:
            first = user.operands[0] == name
            if user.kind == "bitcast":
                total += self._read(fused, user.name)
            elif user.kind == "fusion":
                inner = self.computations[user.called[0]]
                for i, operand in enumerate(user.operands):
                    if operand == name:
                        total += self._read(inner, inner.parameters[i])
                        if inner.origin(inner.root.name) == inner.parameters[i]:
                            total += self._read(fused, user.name)
            elif user.kind in _PARTS and first:
                total += sum(array[0] for array in _arrays(user.shape))
            elif not _passes(fused, user, first):
                return math.inf
        return total


def _received(kind: str, collective: Instruction, computation: Computation) -> float:
    """Bytes that a device receives by one collective of one or several arrays."""
    body = computation.body
    given = _bytes(*(body[name].shape for name in collective.operands if name in body))
    if kind == "reduce-scatter":
        return given
    made = _bytes(collective.shape)
    if collective.kind.endswith("-start") and made > given:  # lists what it was given too
        made -= given
    return made * (2 if kind == "all-reduce" else 1)


def _passes(fused: Computation, user: Instruction, first: bool) -> bool:
    """Whether a fusion's parameter is only handed on: as a result, to be updated in place, or by a
    collective that runs beside and was counted where it began."""
    beside = fused.name.startswith("async_collective_fusion")
    updated = user.kind == "dynamic-update-slice" and first
    return user.kind == "tuple" or updated or (user.kind in COLLECTIVES and beside)


def _stride(body: Computation, following: Instruction | None) -> int:
    """What a loop adds to its counter."""
    if following is not None and following.kind == "add":
        for name in following.operands:
            step = body.body.get(name)
            if step is not None and step.kind == "constant":
                return max(1, int(step.rest.partition(")")[0]))
    return 1


def _written(fused: Computation, shape: str) -> list[float]:
    """Bytes that a fusion writes for each of the arrays of its result."""
    root = fused.root
    names = root.operands if root.kind == "tuple" else [root.name]
    found = []
    for name, size in zip(names, _memory(shape)):
        made = fused.body.get(fused.origin(name))
        if made is not None and made.kind == "dynamic-update-slice":
            update = fused.body[made.operands[1]]
            size = min(size, sum(array[0] for array in _arrays(update.shape)))
        elif root.kind == "tuple" and made is not None and made.kind in ("parameter", *COLLECTIVES):
            size = 0.0  # handed on
        found.append(size)
    return found


def _arrays(shape: str) -> list[tuple[float, bool]]:
    """Bytes of each array of a shape, and whether it is in the device's large memory."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        width = 1 if dtype in ("pred", "f8") else jnp.dtype(_NAMES.get(dtype, dtype)).itemsize
        size = width * math.prod(int(size) for size in dims.split(",") if size)
        found.append((float(size), not _ELSEWHERE.search(layout)))
    return found


def _memory(shape: str) -> list[float]:
    """Bytes of each array of a shape; 0 for one that is not in the device's large memory."""
    return [size if here else 0.0 for size, here in _arrays(shape)]


def _bytes(*shapes: str) -> float:
    """Bytes of shapes, of arrays or tuples of them, wherever they are."""
    return sum(size for shape in shapes for size, _ in _arrays(shape))
