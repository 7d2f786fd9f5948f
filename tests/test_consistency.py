"""How well clips fit their own prompts."""

import numpy as np
import pytest

from mgen import consistency


def test_a_chain_that_follows_is_told_from_one_that_does_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 40))
    follows = consistency.summary(noise + 2.0 * np.eye(40))
    assert follows["low"] > 0.5 and follows["high"] > follows["difference"] > follows["low"]
    deaf = consistency.summary(noise)
    assert deaf["low"] < 0 < deaf["high"] and deaf["recall_at_1"] < follows["recall_at_1"]


def test_figures_of_a_small_table():
    found = consistency.summary(np.asarray([[0.9, 0.1, 0.3], [0.2, 0.6, 0.4], [0.5, 0.4, 0.3]]))
    assert found["prompted"] == pytest.approx(0.6)
    assert found["shuffled"] == pytest.approx((0.2 + 0.3 + 0.45) / 3)
    assert found["difference"] == pytest.approx(found["prompted"] - found["shuffled"])
    assert found["recall_at_1"] == pytest.approx(2 / 3)
    # Of three clips every resample lies between the smallest and the largest gap.
    assert -0.15 <= found["low"] <= found["difference"] <= found["high"] <= 0.7
