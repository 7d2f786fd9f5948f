"""Probes: perfect on what is linear, at chance on noise; information against its limits."""

import numpy as np
import pytest

from mgen.metrics import probes


def test_linear_probe_finds_a_linear_label_and_ignores_unlabelled_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8))
    y = (x[:, 3] > 0).astype(int)
    y[:100] = -1
    x[:100] = 1e3  # would ruin the fit and the score
    scale = np.linspace(1, 100, 8)
    assert probes.linear_probe(x[:400] * scale, y[:400], x[400:] * scale, y[400:]) > 0.9
    noise = rng.integers(0, 2, 600)
    assert probes.linear_probe(x[100:400], noise[100:400], x[400:], noise[400:]) < 0.65


def test_information_is_one_for_a_renaming_and_zero_for_noise():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 5000)
    labels[:50] = -1
    assert probes.mutual_information((labels + 2) % 7, labels) == pytest.approx(1.0)
    assert abs(probes.mutual_information(rng.integers(0, 50, 5000), labels)) < 0.01


def test_accuracies_of_constant_answers():
    labels = np.array([0, 0, 0, 1, 2, -1])
    assert probes.majority(labels, np.array([0, 1, -1, 0])) == pytest.approx(2 / 3)
    assert probes.balanced_accuracy(labels[:5], np.zeros(5, int)) == pytest.approx(1 / 3)
