"""Categorical conditions of a piece: the classes that a language model is guided by.

A condition is one value a field; value 0 is "unknown" everywhere, which is also what
classifier-free guidance drops to. `NAMES` is part of every token dataset and model: append values,
never reorder them.
"""

import re

import numpy as np

from mgen.errors import UserError
from mgen.inputs.record import Record

UNKNOWN = "unknown"
NAMES: dict[str, list[str]] = {
    "metre": [
        UNKNOWN,
        "2/4",
        "3/4",
        "4/4",
        "2/2",
        "3/2",
        "4/2",
        "6/8",
        "9/8",
        "12/8",
        "3/8",
        "other",
    ],
    "mode": [UNKNOWN, "major", "minor"],
    "tempo": [UNKNOWN, "slow", "moderate", "fast"],
    "density": [UNKNOWN, "sparse", "medium", "dense"],
}
TEMPO_LIMITS = (80.0, 120.0)  # quarter notes a minute: below slow, above fast
DENSITY_LIMITS = (4.0, 10.0)  # notes a second in all stems: below sparse, above dense


def sizes() -> tuple[int, ...]:
    """Number of values of every field, in the order of the columns."""
    return tuple(len(values) for values in NAMES.values())


def from_record(record: Record, tempo_scale: float = 1.0) -> np.ndarray:
    """The condition of a piece, int32 [A].

    Args:
      record: metre, tempo and density are those of the longest stretch, mode that of its key.
      tempo_scale: factor on the tempo that the piece is played at
        (`render.Performance.tempo_scale`).
    """
    values = dict.fromkeys(NAMES, UNKNOWN)
    if len(record.metres):
        _, numerator, denominator = _longest(record.metres, record.duration)
        metre = f"{numerator:.0f}/{denominator:.0f}"
        values["metre"] = metre if metre in NAMES["metre"] else "other"
    mode = re.search(r"\b(major|minor)\b", record.key.lower())
    if mode:
        values["mode"] = mode[1]
    if len(record.tempi):
        tempo = _longest(record.tempi, record.duration)[1] * tempo_scale
        values["tempo"] = NAMES["tempo"][1 + int(np.searchsorted(TEMPO_LIMITS, tempo))]
    if len(record.notes) and record.duration > 0:
        density = len(record.notes) / record.duration * tempo_scale
        values["density"] = NAMES["density"][1 + int(np.searchsorted(DENSITY_LIMITS, density))]
    return np.array([NAMES[field].index(value) for field, value in values.items()], np.int32)


def parse(text: str) -> np.ndarray:
    """A condition from "metre=3/4,mode=minor", int32 [A]; fields that are not named are unknown.

    Raises:
      UserError: an unknown field or value; the message lists the valid ones.
    """
    condition = np.zeros(len(NAMES), np.int32)
    for item in filter(None, (item.strip() for item in text.split(","))):
        field, _, value = (part.strip() for part in item.partition("="))
        if field not in NAMES:
            raise UserError(
                f"condition {item!r}: expected field=value with a field of {', '.join(NAMES)}"
            )
        if value not in NAMES[field]:
            raise UserError(
                f"condition {item!r}: expected {field} to be one of {', '.join(NAMES[field])}"
            )
        condition[list(NAMES).index(field)] = NAMES[field].index(value)
    return condition


def describe(condition: np.ndarray) -> str:
    """Inverse of `parse`: "metre=3/4,mode=minor"; "" where everything is unknown."""
    named = zip(NAMES.items(), condition.tolist())
    return ",".join(f"{field}={values[value]}" for (field, values), value in named if value)


def _longest(changes: np.ndarray, duration: float) -> np.ndarray:
    """Of a table of changes [n, 1 + columns] (first column: time in s), the row whose values hold
    longest in sum."""
    lengths = np.diff(np.append(changes[:, 0], max(duration, float(changes[-1, 0]))))
    _, groups = np.unique(changes[:, 1:], axis=0, return_inverse=True)
    totals = np.bincount(groups.reshape(-1), weights=lengths)
    return changes[int(np.argmax(totals[groups.reshape(-1)]))]
