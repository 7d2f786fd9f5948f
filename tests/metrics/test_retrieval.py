"""Retrieval metrics against scikit-learn, by hand, and chance levels against simulation."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mgen.errors import UserError
from mgen.metrics import retrieval

RNG = np.random.default_rng(0)


def clips(queries=40, items=70, groups=12, dim=6):
    """Embeddings with several items and queries a group, some of them close to their group."""
    query_groups = RNG.integers(0, groups, queries)
    item_groups = np.concatenate([np.arange(groups), RNG.integers(0, groups, items - groups)])
    centres = RNG.normal(size=(groups, dim))
    noise = RNG.normal(size=(queries, dim)), RNG.normal(size=(items, dim))
    return (
        centres[query_groups] + noise[0],
        centres[item_groups] + noise[1],
        query_groups,
        item_groups,
    )


def test_equals_sklearn_and_counting():
    queries, items, query_groups, item_groups = clips()
    found = retrieval.retrieval(queries, items, query_groups, item_groups)
    ranks, precisions = [], []
    for query, group in zip(queries, query_groups):
        scores, relevant = items @ query, item_groups == group
        best = scores[relevant].max()
        ranks.append(1 + sum(score > best for score in scores))
        precisions.append(average_precision_score(relevant, scores))
    assert found["median_rank"] == np.median(ranks)
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    # float64 sums in another order.
    np.testing.assert_allclose(found["mean_average_precision"], np.mean(precisions), rtol=1e-12)


def test_blocks_of_queries_change_nothing(monkeypatch):
    data = clips()
    whole = retrieval.retrieval(*data)
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", 7)
    assert retrieval.retrieval(*data) == pytest.approx(whole)


def test_by_hand_both_ways():
    audio = np.eye(3)
    text = np.asarray([[1.0, 0.9, 0.0], [0.0, 1.0, 0.5], [1.0, 0.0, 0.9]])
    found = retrieval.both_ways(audio, text, ks=(1, 2))
    # Text 2 prefers audio 0. Audio 0 ties between texts 0 and 2, so that text 0 comes second.
    assert found["text_to_audio/recall_at_1"] == pytest.approx(2 / 3)
    assert found["text_to_audio/recall_at_2"] == 1
    assert found["text_to_audio/mean_average_precision"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert found["audio_to_text/recall_at_1"] == pytest.approx(2 / 3)
    assert found["audio_to_text/median_rank"] == 1


def test_perfect_and_collapsed():
    groups = clips()[2]
    perfect = retrieval.retrieval(np.eye(12)[groups], np.eye(12)[groups], groups, groups)
    assert (
        perfect["recall_at_1"] == perfect["mean_average_precision"] == perfect["median_rank"] == 1
    )
    same = np.ones((40, 4))
    collapsed = retrieval.retrieval(same, same)
    assert collapsed["recall_at_10"] == 0 and collapsed["median_rank"] == 40


def test_chance_is_the_mean_of_random_orders():
    """1000 orders, 4 queries each: the standard error of a recall is under 0.008."""
    query_groups = np.arange(4)
    item_groups = np.asarray([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5])
    expected = retrieval.chance(query_groups, item_groups)
    order = np.stack([RNG.permutation(13) for _ in range(4000)]).reshape(4, 1000, 13)
    relevant = query_groups[:, None, None] == item_groups[order]
    ranks = 1 + relevant.argmax(axis=-1)
    for k in (1, 5, 10):
        assert np.mean(ranks <= k) == pytest.approx(expected[f"recall_at_{k}"], abs=0.03)
    precision = retrieval.average_precision(relevant.reshape(-1, 13)).mean()
    assert precision == pytest.approx(expected["mean_average_precision"], abs=0.02)
    assert expected["median_rank"] == np.median(ranks)


def test_chance_with_one_relevant_item_each():
    found = retrieval.chance(np.arange(100), np.arange(100))
    assert found["recall_at_1"] == pytest.approx(0.01) and found["recall_at_10"] == pytest.approx(
        0.1
    )
    assert found["median_rank"] == 50
    assert found["mean_average_precision"] == pytest.approx(np.mean(1 / np.arange(1, 101)))
    assert retrieval.chance(np.zeros(3), np.zeros(4))["recall_at_1"] == 1


def test_query_without_an_item_is_refused():
    with pytest.raises(UserError, match="query 1 has group 7"):
        retrieval.retrieval(np.eye(2), np.eye(2), np.asarray([0, 7]), np.asarray([0, 1]))
    with pytest.raises(UserError, match="no queries"):
        retrieval.retrieval(np.eye(2), np.zeros((0, 2)))
