"""What codes cost that are told by their frequencies alone."""

from collections.abc import Sequence

import numpy as np

from mgen.typing import Float, Int


def cross_entropy(
    train_counts: Int[np.ndarray, "K V"], counts: Int[np.ndarray, "K V"], sizes: Sequence[int]
) -> Float[np.ndarray, " K"]:
    """Nats a token, by codebook, that the frequencies of `train_counts` cost on the tokens counted
    in `counts`: the loss of a model that ignores context.

    Every code counts one more in training, so that none is impossible. Codebooks with no tokens in
    `counts` give 0.

    Args:
      sizes: codes of each codebook, at most V.
    """
    real = np.arange(train_counts.shape[1])[None] < np.asarray(sizes)[:, None]
    smoothed = np.where(real, train_counts + 1, 0)
    p = smoothed / smoothed.sum(axis=-1, keepdims=True)
    logs = np.log(np.where(real, p, 1.0))
    return -(counts * logs).sum(axis=-1) / np.maximum(counts.sum(axis=-1), 1)
