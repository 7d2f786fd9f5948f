"""Splits by work: what is alike is joined first, then each collection is cut 90/5/5 in the order of
a hash.
"""

import collections
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence

from mgen.data.corpus_scores.catalogue import rank

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05  # share of the pieces in each of validation and test
SMALLEST_STRATUM = 20  # components; smaller collections are cut together
LARGEST_HELD_OUT = 0.02  # components with a larger share of their stratum stay in train

GENERIC = re.compile(
    r"\b(the|a|an|of|and|jig|slip|reel|hornpipe|clog|strathspey|highland|fling|waltz|polka|march|air"
    r"|quick|step|quickstep|minuet|quadrille|chorus|st|nd|rd|th|regt|regiment|untitled|unknown"
    r"|favou?rite|new|old|irish|scotch|slow|version|set|no)\b"
)


def title_key(title: str) -> str | None:
    """What is left of a tune's title without words that many share; None where too little is."""
    text = re.sub(r"[^a-z ]", "", title.lower().replace("-", " "))
    text = re.sub(r"\s+", " ", GENERIC.sub(" ", text)).strip()
    return f"title {text}" if len(text) >= 6 else None


def components(keys: Mapping[str, Iterable[Hashable]]) -> list[list[str]]:
    """Groups of ids that share a key, directly or through others; ids sorted within, groups by
    first id.
    """
    parent = {name: name for name in keys}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    owner: dict[Hashable, str] = {}
    for name in sorted(keys):
        for key in keys[name]:
            first = root(owner.setdefault(key, name))
            second = root(name)
            low, high = sorted((first, second))
            parent[high] = low
    groups = collections.defaultdict(list)
    for name in sorted(keys):
        groups[root(name)].append(name)
    return sorted(groups.values())


def assign(groups: Sequence[Sequence[str]], collection: Mapping[str, str]) -> dict[str, str]:
    """Id -> split. Groups stay whole; every collection of some size is cut 90/5/5 on its own.

    Args:
      groups: from `components`.
      collection: of each id; a group is counted with its first id's.
    """
    strata = collections.defaultdict(list)
    for group in groups:
        strata[collection[group[0]]].append(group)
    for name in [name for name, held in strata.items() if len(held) < SMALLEST_STRATUM]:
        strata[""] += strata.pop(name)
    split: dict[str, str] = {}
    order = sorted(groups, key=lambda group: rank(f"split {group[0]}"))
    for held in strata.values():
        total = sum(map(len, held))
        largest = max(1, LARGEST_HELD_OUT * total)
        passed = 0
        for group in sorted(held, key=lambda group: rank(f"split {group[0]}")):
            position = (passed + len(group) / 2) / max(total, 1)
            if len(group) > largest or position >= 2 * HELD_OUT:
                name = "train"
            else:
                name = "test" if position < HELD_OUT else "validation"
            if len(group) <= largest:
                passed += len(group)
            split.update(dict.fromkeys(group, name))
    # A handful of pieces still gets something to evaluate on.
    for name in SPLITS[1:]:
        spare: list[Sequence[str]] = [group for group in order if split[group[0]] == "train"]
        if name not in split.values() and len(spare) > 1:
            split.update(dict.fromkeys(sorted(spare[:-1], key=len)[0], name))
    return split
