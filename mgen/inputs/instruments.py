"""General MIDI instruments by timbre group, their playing ranges, and who plays a stem.

Program numbers count from 0 (General MIDI level 1); 128 is the drum kit. Ranges are sounding MIDI
pitches as orchestration handbooks give them, a little widened at the top.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mgen.inputs.record import DRUM_KIT


@dataclasses.dataclass(frozen=True)
class Group:
    """A timbre group.

    Attributes:
      programs: General MIDI programs of the group.
      release: s from note-off to silence.
    """

    programs: tuple[int, ...]
    release: float


GROUPS: dict[str, Group] = {
    "piano": Group((0, 1, 2, 4, 5), 0.10),
    "mallets": Group((8, 11, 12, 13), 0.30),
    "organ": Group((16, 19, 20), 0.06),
    "guitar": Group((24, 25, 26, 27), 0.10),
    "bass": Group((32, 33, 34, 35), 0.08),
    "strings": Group((40, 41, 42, 43, 48, 49), 0.12),
    "plucked": Group((6, 45, 46, 15), 0.20),
    "voices": Group((52, 53), 0.12),
    "brass": Group((56, 57, 58, 60, 61), 0.08),
    "reeds": Group((64, 65, 66, 68, 69, 70, 71), 0.07),
    "flutes": Group((72, 73, 74, 75), 0.07),
    "drums": Group((DRUM_KIT,), 0.05),
}
OTHER = Group((), 0.08)
DRUM_HOLD = 1.0  # s that a drum sounds, whatever its note length says

RANGES: dict[int, tuple[int, int]] = {
    8: (60, 108), 11: (53, 89), 12: (45, 96), 13: (65, 108), 15: (45, 84),
    24: (40, 84), 25: (40, 84), 26: (40, 84), 27: (40, 86),
    32: (28, 62), 33: (28, 62), 34: (28, 62), 35: (28, 62),
    40: (55, 103), 41: (48, 91), 42: (36, 79), 43: (24, 62), 45: (36, 96), 46: (24, 103),
    52: (40, 81), 53: (40, 81),
    56: (52, 86), 57: (36, 74), 58: (26, 62), 60: (34, 77), 61: (36, 84),
    64: (56, 88), 65: (49, 81), 66: (42, 76),
    68: (58, 91), 69: (52, 81), 70: (34, 76), 71: (50, 94),
    72: (74, 108), 73: (59, 98), 74: (60, 98), 75: (60, 98),
}  # fmt: skip
ANY_PITCH = (0, 127)

# A stem whose name holds the word is played by these groups.
ROLES: dict[str, tuple[str, ...]] = {
    "drum": ("drums",),
    "percussion": ("drums",),
    "bass": ("bass",),
    "guitar": ("guitar",),
    "piano": ("piano",),
    "keys": ("piano", "organ"),
    "organ": ("organ",),
    "string": ("strings",),
    "brass": ("brass",),
    "vocal": ("voices",),
}
# Everyone else: a part of a quartet, a tune.
MELODIC = tuple(name for name in GROUPS if name not in ("drums", "bass"))

# Roles that stay when the other instruments are drawn freely.
FIXED = (("bass",), ("drums",))

_NAME_OF = {program: name for name, group in GROUPS.items() for program in group.programs}


def group_of(program: int) -> Group:
    """The timbre group of a General MIDI program (`OTHER` for one that no group lists)."""
    return GROUPS.get(group_name(program), OTHER)


def group_name(program: int) -> str:
    """Name of that group; "" for a program that no group lists."""
    return _NAME_OF.get(program, "")


def role_groups(stem_name: str, stem_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the groups that may play a stem of the dataset whose slots are `stem_names`.

    "bass" is the instrument in a band, and the lowest voice among soprano, alto and tenor.
    """
    name = stem_name.lower()
    choir = any(voice in other.lower() for other in stem_names for voice in ("alto", "tenor"))
    for word, groups in ROLES.items():
        if word in name and not (word == "bass" and choir):
            return groups
    return MELODIC


def draw_programs(
    stem_names: Sequence[str],
    pitch_ranges: Sequence[tuple[float, float]],
    rng: np.random.Generator,
    free: bool = False,
) -> np.ndarray:
    """An instrument for every stem, of distinct groups where there are enough.

    Args:
      stem_names: S slot names; they say the role (`role_groups`).
      free: bass and drums keep their roles, all other stems are played by any melodic group.
      pitch_ranges: S pairs (lowest, highest MIDI pitch) that the instrument should be able to play.
      rng: source of the draws.

    Returns:
      int32 [S], programs; the instrument whose range misses least where none covers the part.
    """
    roles = [role_groups(name, stem_names) for name in stem_names]
    if free:
        roles = [groups if groups in FIXED else MELODIC for groups in roles]
    used: set[str] = set()
    programs = np.zeros(len(stem_names), np.int32)
    # Stems with a fixed role first, or a melody part could take their group.
    for stem in sorted(range(len(roles)), key=lambda s: len(roles[s])):
        groups = roles[stem]
        fresh = [name for name in groups if name not in used] or list(groups)
        low, high = pitch_ranges[stem]
        misses = {
            (name, program): _miss(program, low, high)
            for name in fresh
            for program in GROUPS[name].programs
        }
        least = min(misses.values())
        fitting: dict[str, list[int]] = {}
        for (name, program), miss in misses.items():
            if miss == least:
                fitting.setdefault(name, []).append(program)
        # Group first, then program: groups of many programs would win otherwise.
        name = list(fitting)[rng.integers(len(fitting))]
        programs[stem] = fitting[name][rng.integers(len(fitting[name]))]
        used.add(name)
    return programs


def _miss(program: int, low: float, high: float) -> float:
    """Semitones by which a part leaves the range of `program`."""
    bottom, top = RANGES.get(program, ANY_PITCH)
    return max(0.0, bottom - low) + max(0.0, high - top)
