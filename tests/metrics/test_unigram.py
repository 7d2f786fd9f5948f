"""The frequencies of codes as a model of them."""

import numpy as np

from mgen.metrics import unigram


def test_unigram_scores():
    """Even frequencies cost log V; a codebook without tokens nothing; then the formula."""
    even = np.full((2, 4), 2)
    counts = np.array([[8, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(unigram.cross_entropy(even, counts, (4, 4)), [np.log(4), 0])
    # Of a codebook of three codes the fourth column is none.
    np.testing.assert_allclose(unigram.cross_entropy(even, counts, (3, 4)), [np.log(3), 0])
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 50, (2, 3, 9))
    p = (train + 1) / (train + 1).sum(-1, keepdims=True)
    expected = -np.sum(held_out * np.log(p), -1) / held_out.sum(-1)
    np.testing.assert_allclose(unigram.cross_entropy(train, held_out, (9,) * 3), expected)
    # No model without context scores below the entropy of what it is scored on.
    q = held_out / held_out.sum(-1, keepdims=True)
    entropy = -np.sum(q * np.log(np.where(q > 0, q, 1.0)), -1)
    assert np.all(entropy <= expected)
