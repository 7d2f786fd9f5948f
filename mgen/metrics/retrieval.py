"""Retrieval of items by queries in a common embedding space, on the host.

An item is relevant to a query where both carry the same group number: several captions of a piece,
or several clips of it, share one. Ranks count from 1. Among equal scores relevant items come last,
so a collapsed embedding scores nothing.

With r of N items relevant, an order at random gives (`chance`):

  (1)  recall at k: 1 - C(N - r, k) / C(N, k)
  (2)  average precision: 1/N sum_{n=1..N} 1/n (1 + (n - 1) (r - 1) / (N - 1))
  (3)  P(rank of the first relevant item > m) = C(N - r, m) / C(N, m)
"""

from collections.abc import Sequence

import numpy as np

from mgen.errors import UserError
from mgen.typing import Bool, Float, Int, ndarray

KS = (1, 5, 10)
# Rows of the score matrix that exist at a time.
QUERIES_AT_ONCE = 1024


def retrieval(
    queries: Float[ndarray, "Q D"],
    items: Float[ndarray, "N D"],
    query_groups: Int[ndarray, " Q"] | None = None,
    item_groups: Int[ndarray, " N"] | None = None,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """How well inner products find what belongs to each query.

    Args:
      queries, items: embeddings.
      query_groups, item_groups: see above; None numbers the rows 0, 1, 2, ...
      ks: of the recalls.

    Returns:
      "recall_at_<k>": share of queries with a relevant item among the first k.
      "median_rank": of the first relevant item.
      "mean_average_precision": over queries, of the precision at each relevant item's rank
        (Manning et al. 2008, section 8.4).

    Raises:
      UserError: a query to which no item is relevant.
    """
    query_groups, item_groups = _groups(queries, query_groups), _groups(items, item_groups)
    _counts(query_groups, item_groups)
    first, precision = [], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        scores = np.asarray(queries[block]) @ np.asarray(items).T
        relevant = query_groups[block, None] == item_groups[None]
        ranked = rank(scores, relevant)
        first.append(1 + ranked.argmax(axis=1))
        precision.append(average_precision(ranked))
    ranks = np.concatenate(first)
    found = {f"recall_at_{k}": float(np.mean(ranks <= k)) for k in ks}
    found["median_rank"] = float(np.median(ranks))
    found["mean_average_precision"] = float(np.mean(np.concatenate(precision)))
    return found


def both_ways(
    audio: Float[ndarray, "A D"],
    text: Float[ndarray, "X D"],
    audio_groups: Int[ndarray, " A"] | None = None,
    text_groups: Int[ndarray, " X"] | None = None,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """`retrieval` under "text_to_audio/..." and "audio_to_text/..."."""
    ways = {
        "text_to_audio": retrieval(text, audio, text_groups, audio_groups, ks),
        "audio_to_text": retrieval(audio, text, audio_groups, text_groups, ks),
    }
    return {f"{way}/{name}": value for way, found in ways.items() for name, value in found.items()}


def rank(scores: Float[ndarray, "Q N"], relevant: Bool[ndarray, "Q N"]) -> Bool[ndarray, "Q N"]:
    """`relevant` in the order of falling scores."""
    order = np.lexsort((relevant, -scores), axis=1)
    return np.take_along_axis(relevant, order, axis=1)


def average_precision(ranked: Bool[ndarray, "Q N"]) -> Float[ndarray, " Q"]:
    """Mean over the relevant items of the precision at their rank; every row has one at least."""
    hits = np.cumsum(ranked, axis=1)
    precision = hits / np.arange(1, ranked.shape[1] + 1)[None]
    return (precision * ranked).sum(axis=1) / hits[:, -1]


def chance(
    query_groups: Int[ndarray, " Q"],
    item_groups: Int[ndarray, " N"],
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """What `retrieval` gives for items in random order: expected values, equations (1) and (2), and
    the median of the ranks' distribution (3). Raises as it does."""
    total = len(item_groups)
    counts, weights = np.unique(_counts(query_groups, item_groups), return_counts=True)
    weights = weights / weights.sum()
    n = np.arange(1, total + 1)
    missed = np.zeros(total + 1)
    precision = 0.0
    for r, weight in zip(counts, weights):
        # C(N - r, m) / C(N, m) = prod_{i < m} (N - r - i) / (N - i), 0 once m > N - r.
        factors = np.maximum(total - r - np.arange(total), 0) / (total - np.arange(total))
        missed += weight * np.concatenate([[1.0], np.cumprod(factors)])
        others = (n - 1) * (r - 1) / max(total - 1, 1)
        precision += weight * np.mean((1 + others) / n)
    found = {f"recall_at_{k}": float(1 - missed[min(k, total)]) for k in ks}
    # The least m that half of the queries reach; rounding must not push it past an exact half.
    found["median_rank"] = float(np.argmax(missed <= 0.5 + 1e-12))
    found["mean_average_precision"] = float(precision)
    return found


def _groups(rows: ndarray, groups: ndarray | None) -> Int[ndarray, " N"]:
    return np.arange(len(rows)) if groups is None else np.asarray(groups)


def _counts(query_groups: ndarray, item_groups: ndarray) -> Int[ndarray, " Q"]:
    """r of each query."""
    names, counts = np.unique(item_groups, return_counts=True)
    if not len(names) or not len(query_groups):
        raise UserError("retrieval: no queries or no items, expected one of each at least")
    at = np.minimum(np.searchsorted(names, query_groups), len(names) - 1)
    missing = names[at] != query_groups
    if missing.any():
        query = int(np.argmax(missing))
        raise UserError(
            f"retrieval: query {query} has group {query_groups[query]}, expected an item of it"
        )
    return counts[at]
