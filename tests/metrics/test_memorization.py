"""Transport against analytic answers and scipy's LP; copies are caught, chance is not."""

import itertools

import numpy as np
import pytest
import scipy.optimize

from mgen.errors import UserError
from mgen.metrics import memorization

LENGTHS, VOCABULARY = (40, 55, 61, 48, 70, 90, 64, 77, 52, 83), 50


class Pieces(list):
    """A token source in memory."""

    @property
    def frames(self):
        return {"semantic": np.array([len(piece["semantic"]) for piece in self])}


def training(levels=1, seed=0, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    return Pieces(
        {
            "semantic": rng.integers(0, VOCABULARY, (length, levels)).astype(np.int32),
            "attributes": rng.integers(0, 5, 3).astype(np.int32),
        }
        for length in lengths
    )


def book(levels=1, width=6, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(levels, VOCABULARY, width)).astype(np.float32)


def transport_by_lp(x, y, vectors):
    """Optimal transport of the histograms by scipy's LP, in units of the mean distance."""
    tokens = [np.unique(codes[:, 0], return_counts=True) for codes in (x, y)]
    (a, p), (b, q) = tokens
    centroids = vectors[0].astype(np.float64)
    cost = np.linalg.norm(centroids[a][:, None] - centroids[b][None], axis=-1)
    rows = np.kron(np.eye(len(a)), np.ones(len(b)))
    columns = np.kron(np.ones(len(a)), np.eye(len(b)))
    result = scipy.optimize.linprog(
        cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=np.concatenate([p, q]) / len(x)
    )
    pairs = itertools.combinations(range(VOCABULARY), 2)
    unit = np.mean([np.linalg.norm(centroids[i] - centroids[j]) for i, j in pairs])
    return result.fun / unit


def test_similarity_is_the_transport_of_the_histograms():
    """1e-7: the LP's tolerance."""
    rng = np.random.default_rng(3)
    # Few different tokens, many times each: the histograms are far from uniform.
    x, y = np.minimum(rng.geometric(0.15, (2, 5, 30, 1)) - 1, VOCABULARY - 1)
    vectors = book()
    found = memorization.similarity(x, y, vectors)
    expected = [1 - transport_by_lp(a, b, vectors) for a, b in zip(x, y)]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.ptp(found) > 0.01


def test_similarity_on_a_line():
    """In one dimension optimal transport joins the sorted values."""
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, VOCABULARY, (2, 3, 40, 1))
    line = np.arange(VOCABULARY, dtype=np.float32)[None, :, None]
    # Mean of |i - j| over the pairs of n numbers: (n + 1) / 3.
    sorted_apart = np.abs(np.sort(x, axis=1) - np.sort(y, axis=1)).mean(axis=(1, 2))
    expected = 1 - sorted_apart / ((VOCABULARY + 1) / 3)
    np.testing.assert_allclose(memorization.similarity(x, y, line), expected, atol=1e-6)


def test_similarity_of_the_same_and_of_shuffled_tokens_is_one():
    rng = np.random.default_rng(5)
    x = rng.integers(0, VOCABULARY, (2, 30, 3))
    shuffled = x[:, rng.permutation(30)]
    for vectors in (book(3), None):
        np.testing.assert_allclose(memorization.similarity(x, shuffled, vectors), 1, atol=1e-6)
    # Scale, place and rotation of the space do not matter.
    other = np.roll(x, 1, axis=0)
    turned = 7 * book()[..., ::-1] + 2
    np.testing.assert_allclose(
        *(memorization.similarity(x[..., :1], other[..., :1], v) for v in (book(), turned)),
        atol=1e-5,
    )


def test_levels_add_up():
    """A frame of two levels is as far from another as the sums of their vectors."""
    rng = np.random.default_rng(6)
    vectors = book(2)
    x, y = rng.integers(0, VOCABULARY, (2, 1, 4, 2))
    sums = [vectors[0][c[0, :, 0]] + vectors[1][c[0, :, 1]] for c in (x, y)]
    apart = np.linalg.norm(sums[0][:, None] - sums[1][None], axis=-1)
    best = min(
        np.mean([apart[i, j] for i, j in enumerate(p)]) for p in itertools.permutations(range(4))
    )
    pairs = list(itertools.combinations(vectors[0], 2))
    unit = np.mean([np.linalg.norm(a - b) for a, b in pairs])
    np.testing.assert_allclose(memorization.similarity(x, y, vectors), 1 - best / unit, rtol=1e-5)


def test_without_a_codebook_it_is_the_share_of_tokens_in_common():
    x = np.array([[0, 0, 1, 2, 3, 3]])[..., None]
    y = np.array([[3, 0, 1, 1, 4, 5]])[..., None]
    np.testing.assert_allclose(memorization.similarity(x, y), 3 / 6)


def test_codes_of_another_codebook_are_refused():
    codes = np.full((1, 4, 1), VOCABULARY)
    with pytest.raises(UserError, match="codes up to 50 of 1 levels for a codebook of 1 levels of"):
        memorization.similarity(codes, codes, book())
    with pytest.raises(UserError, match="of 2 levels for a codebook of 1"):
        memorization.similarity(*np.zeros((2, 1, 4, 2), int), book())


@pytest.mark.parametrize("levels", [1, 4])
def test_verbatim_passages_are_found_wherever_they_stand(levels):
    pieces = [piece["semantic"] for piece in training(levels)]
    rng = np.random.default_rng(7)
    passages = [pieces[0][:20], pieces[3][-20:], pieces[5][33:53], pieces[5][33:53]]
    for _ in range(20):
        # One token off, anywhere.
        near = pieces[int(rng.integers(10))][5:25].copy()
        near[rng.integers(20), rng.integers(levels)] += 1
        passages.append(near)
    passages.append(pieces[2][10:30][::-1])
    found = memorization.occurs(np.stack(passages), iter(pieces))
    assert found.tolist() == [True] * 4 + [False] * 21
    # Every token of small numbers the same: equal sums are no equal passages.
    small = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])[..., None]
    data = [np.array([0, 1, 0, 0])[:, None], np.zeros((2, 1), int)]
    assert memorization.occurs(small, data).tolist() == [True, True, False]


def test_equal_hashes_are_not_taken_for_equal_passages(monkeypatch):
    def same(codes, frames):
        return np.zeros(max(0, len(codes) - frames + 1), np.uint64)

    monkeypatch.setattr(memorization, "_window_hashes", same)
    pieces = [piece["semantic"] for piece in training()]
    passages = np.stack([pieces[1][3:23], pieces[1][3:23] + 1])
    assert memorization.occurs(passages, pieces).tolist() == [True, False]


def lookup(pieces):
    """A model that knows the training set: it finds the prompt and goes on from there."""

    def generate(*, frames, seeds, prompt, attributes, embeddings):
        assert embeddings is None
        assert attributes.shape == (len(seeds), 3)
        if prompt is None:
            return np.stack([pieces[int(seed) % 3]["semantic"][:frames] for seed in seeds])
        rows = []
        for row in prompt:
            for piece in pieces:
                codes = piece["semantic"]
                for start in range(len(codes) - frames + 1):
                    if np.array_equal(codes[start : start + len(row)], row):
                        rows.append(codes[start : start + frames])
                        break
                else:
                    continue
                break
        return np.stack(rows)

    return generate


def noise(*, frames, seeds, prompt, attributes, embeddings):
    """A model that says anything, the prompt first."""
    rows = []
    for i, seed in enumerate(seeds):
        codes = np.random.default_rng([9, int(seed)]).integers(0, VOCABULARY, (frames, 1))
        if prompt is not None:
            codes[: prompt.shape[1]] = prompt[i]
        rows.append(codes)
    return np.stack(rows)


def run(generate, pieces, **overrides):
    settings = dict(prompts=(0, 4, 12), frames=25, count=8, vectors=book(), batch=3)
    return memorization.audit(generate, pieces, "semantic", **(settings | overrides))


def test_a_model_that_copies_is_caught():
    pieces = training()
    rows = run(lookup(pieces), pieces)
    assert [row["prompt"] for row in rows] == [0, 4, 12]
    assert all(row["passages"] == 8 and row["frames"] == 25 for row in rows)
    # Without a prompt it cannot know which piece is meant, but what it says stands in the data.
    assert rows[0]["exact"] < 0.5 and rows[0]["verbatim"] == 1
    for row in rows[1:]:
        assert row["exact"] == row["verbatim"] == row["approximate"] == 1
        assert row["similarity"] == pytest.approx(1) and row["false_positives"] == 0


def test_a_model_that_shuffles_is_caught_by_the_histogram_only():
    pieces = training()
    known = lookup(pieces)

    def generate(*, prompt, **given):
        codes = known(prompt=prompt, **given).copy()
        codes[:, prompt.shape[1] :] = codes[:, : prompt.shape[1] - 1 : -1]
        return codes

    (row,) = run(generate, pieces, prompts=(8,))
    assert row["exact"] == row["verbatim"] == 0 and row["approximate"] == 1


def test_a_random_model_is_not_caught():
    for vectors in (book(), None):
        for row in run(noise, training(), vectors=vectors):
            assert row["exact"] == row["verbatim"] == row["approximate"] == 0
            assert 0 <= row["similarity"] < 0.7 and row["false_positives"] == 0


def test_a_threshold_that_is_too_low_tells_on_itself():
    (row,) = run(noise, training(), prompts=(4,), threshold=0.1)
    assert row["approximate"] > 0.9 and row["false_positives"] > 0.9


def test_passages_are_drawn_from_long_enough_pieces_and_batches_do_not_matter():
    pieces = training()
    passages = memorization.draw(pieces, "semantic", 99, 60, seed=1)
    assert passages.codes.shape == (6, 60, 1) and passages.attributes.shape == (6, 3)
    flat = [piece["semantic"].ravel().tobytes() for piece in pieces]
    sources = [[row.ravel().tobytes() in piece for piece in flat] for row in passages.codes]
    assert all(sum(row) == 1 for row in sources) and np.sum(sources, axis=0).max() == 1
    again = memorization.draw(pieces, "semantic", 99, 60, seed=1)
    np.testing.assert_array_equal(passages.codes, again.codes)
    assert run(noise, pieces, batch=8) == run(noise, pieces, batch=3)
    with pytest.raises(UserError, match=r"1 pieces have the 85 frames .*; the longest has 90"):
        memorization.draw(pieces, "semantic", 9, 85)


def test_table_has_a_line_a_prompt():
    lines = memorization.table(run(noise, training()), frame_rate=4.0).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0.00", "1.00", "3.00"]
    assert lines[0].split()[2:4] == ["exact", "verbatim"]
