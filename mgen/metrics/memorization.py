"""How much of its training data a token language model says by heart (Carlini et al. 2023,
"Quantifying Memorization Across Neural Language Models"; Agostinelli et al. 2023, "MusicLM",
memorisation analysis).

The model is given the first P frames of a passage of the training data and goes on greedily for F
frames, x; the passage itself goes on with y. Over many passages, by P:

  exact        share with x = y
  verbatim     share whose x occurs somewhere in the training data, in any piece
  approximate  share with similarity(x, y) >= threshold

  (1)  c_ij = |v(x_i) - v(y_j)| / mean over a != b of |e_a - e_b|
  (2)  similarity(x, y) = 1 - 1/F min over permutations s of sum_i c_is(i)

v(x_i) is the vector of the tokens of frame i (the centroid; with several levels their sum), e_a the
centroids of the first level. The sum in (2) is the optimal transport between the histograms of the
tokens of x and y at cost (1): both have F frames of weight 1 / F, and of the plans between uniform
measures an optimal one is a permutation (Birkhoff), so it is found exactly, as an assignment.
1 is the same tokens in any order, 0 tokens as far apart as two centroids are in the mean. Without a
codebook c_ij is 0 for equal frames and 1 for others, and (2) is the share of tokens in common.

MusicLM's matching cost is the transport in the units of its own centroids, by Sinkhorn iterations,
with a threshold of 0.85 that was set on pairs of unrelated passages. Here too the rate among
permuted pairs is reported (`false_positives`): where it is not near 0, the threshold is too low for
the codebook, and `approximate` says nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from mgen.errors import UserError
from mgen.typing import Bool, Float, Int, ndarray

THRESHOLD = 0.85
EMBEDDING = "joint_embedding"  # stream of a piece
SHIFTS = 4  # permutations whose pairs are the unrelated ones


class Pieces(Protocol):
    """What of a `mgen.inputs.tokens.TokenSource` is read."""

    frames: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Passages:
    """Passages of training data: codes int32 [N, L, K], attributes int32 [N, A] of their pieces,
    and the pieces' mean joint embeddings float32 [N, D] where they have any."""

    codes: Int[ndarray, "N L K"]
    attributes: Int[ndarray, "N A"]
    embeddings: Float[ndarray, "N D"] | None = None


def draw(pieces: Pieces, stream: str, count: int, frames: int, seed: int = 0) -> Passages:
    """At most `count` passages of `frames` frames, each from a random place of a piece of its own.

    Raises:
      UserError: fewer than two pieces are that long.
    """
    lengths = pieces.frames[stream]
    usable = np.flatnonzero(lengths >= frames)
    if len(usable) < 2:
        raise UserError(
            f"{len(usable)} pieces have the {frames} frames of prompt and continuation, expected 2 "
            f"at least; the longest has {lengths.max(initial=0)}"
        )
    rng = np.random.default_rng(seed)
    codes, attributes, embeddings = [], [], []
    for index in rng.permutation(usable)[:count].tolist():
        piece = pieces[index]
        start = int(rng.integers(len(piece[stream]) - frames + 1))
        codes.append(piece[stream][start : start + frames])
        attributes.append(piece["attributes"])
        if EMBEDDING in piece:
            embeddings.append(piece[EMBEDDING].mean(axis=0))
    vectors = np.stack(embeddings) if embeddings else None
    return Passages(np.stack(codes), np.stack(attributes), vectors)


def audit(
    generate: Callable[..., Any],
    pieces: Pieces,
    stream: str,
    *,
    prompts: Sequence[int],
    frames: int,
    count: int,
    vectors: Float[ndarray, "K V D"] | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
    batch: int = 16,
) -> list[dict[str, float]]:
    """One row of figures a prompt length: "prompt" and "frames" (lengths), "passages", and with the
    mean "similarity" the four rates above.

    Args:
      generate: called with frames (prompt and continuation), seeds int32 [B], prompt int32
        [B, P, K] (None where P is 0), attributes int32 [B, A] and embeddings float32 [B, D] of the
        whole pieces (None where they have none); gives codes [B, frames, K], the prompt's at the
        front. Should be greedy.
      pieces: the training split.
      prompts: P; every passage is long enough for the longest, and begins at the same place for
        all.
      frames: F.
      vectors: of the codebook.
      batch: B.
    """
    passages = draw(pieces, stream, count, max(prompts) + frames, seed)
    said, wanted = [], []
    for prompt in prompts:
        codes = continuations(generate, passages, prompt, frames, batch)
        said.append(codes)
        wanted.append(passages.codes[:, prompt : prompt + frames])
    training = (pieces[index][stream] for index in range(len(pieces)))
    copied = occurs(np.concatenate(said), training).reshape(len(prompts), -1)
    rows = []
    for prompt, x, y, verbatim in zip(prompts, said, wanted, copied):
        alike = similarity(x, y, vectors)
        unrelated = [
            similarity(np.roll(y, shift, axis=0), y, vectors)
            for shift in range(1, min(SHIFTS + 1, len(y)))
        ]
        rows.append(
            {
                "prompt": prompt,
                "frames": frames,
                "passages": len(x),
                "exact": float(exact(x, y).mean()),
                "verbatim": float(verbatim.mean()),
                "approximate": float((alike >= threshold).mean()),
                "false_positives": float((np.concatenate(unrelated) >= threshold).mean()),
                "similarity": float(alike.mean()),
            }
        )
    return rows


def continuations(
    generate: Callable[..., Any], passages: Passages, prompt: int, frames: int, batch: int
) -> Int[ndarray, "N F K"]:
    """What `generate` (see `audit`) makes of the first `prompt` frames of every passage."""
    count = len(passages.codes)
    made = []
    for start in range(0, count, batch):
        # Full batches only: one compiled program a prompt length.
        rows = np.arange(start, start + batch) % count
        codes = generate(
            frames=prompt + frames,
            seeds=rows.astype(np.int32),
            prompt=passages.codes[rows, :prompt] if prompt else None,
            attributes=passages.attributes[rows],
            embeddings=None if passages.embeddings is None else passages.embeddings[rows],
        )
        made.append(np.asarray(codes)[:, prompt:])
    return np.concatenate(made)[:count]


def exact(x: Int[ndarray, "N F K"], y: Int[ndarray, "N F K"]) -> Bool[ndarray, " N"]:
    """Where all tokens are the same."""
    return (x == y).all(axis=(1, 2))


def similarity(
    x: Int[ndarray, "N F K"],
    y: Int[ndarray, "N F K"],
    vectors: Float[ndarray, "K V D"] | None = None,
) -> Float[ndarray, " N"]:
    """Equation (2); `UserError` where the codes are none of the codebook's."""
    from scipy.optimize import linear_sum_assignment

    distance = _distances(vectors)
    found = []
    for a, b in zip(x, y):
        cost = distance(a, b)
        found.append(1.0 - cost[linear_sum_assignment(cost)].mean())
    return np.array(found)


def occurs(
    passages: Int[ndarray, "N F K"], training: Iterable[Int[ndarray, "T K"]]
) -> Bool[ndarray, " N"]:
    """Which passages stand word for word somewhere in the training data, read once, piece by
    piece."""
    frames = passages.shape[1]
    places: dict[int, list[int]] = {}
    for index, passage in enumerate(passages):
        places.setdefault(int(_window_hashes(passage, frames)[0]), []).append(index)
    known = np.fromiter(places, np.uint64)
    found = np.zeros(len(passages), bool)
    for piece in training:
        hashes = _window_hashes(piece, frames)
        for start in np.flatnonzero(np.isin(hashes, known)).tolist():
            window = piece[start : start + frames]
            for index in places[int(hashes[start])]:
                # A hash may collide.
                found[index] |= np.array_equal(window, passages[index])
    return found


def table(rows: Sequence[dict[str, float]], frame_rate: float) -> str:
    """The rows of `audit` as text, lengths in s."""
    names = ("exact", "verbatim", "approximate", "false_positives", "similarity")
    lines = ["prompt s  " + "  ".join(names)]
    for row in rows:
        figures = (f"{row[name]:>{len(name)}.4f}" for name in names)
        lines.append(f"{row['prompt'] / frame_rate:>8.2f}  " + "  ".join(figures))
    return "\n".join(lines)


def _distances(
    vectors: Float[ndarray, "K V D"] | None,
) -> Callable[[ndarray, ndarray], Float[ndarray, "F F"]]:
    """Equation (1) of two sequences of frames [F, K]."""
    if vectors is None:
        return lambda x, y: (x[:, None] != y[None]).any(axis=-1).astype(np.float64)
    levels, size, _ = vectors.shape
    first = vectors[0].astype(np.float64)
    between = _euclidean(first, first)
    scale = between.sum() / (size * (size - 1))

    def checked(codes: Int[ndarray, "F K"]) -> Int[ndarray, "F K"]:
        if codes.shape[1] > levels or codes.min() < 0 or codes.max() >= size:
            raise UserError(
                f"codes up to {codes.max()} of {codes.shape[1]} levels for a codebook of {levels} "
                f"levels of {size}"
            )
        return codes

    def decoded(codes: Int[ndarray, "F K"]) -> Float[ndarray, "F D"]:
        rows = vectors[np.arange(codes.shape[1]), checked(codes)]
        return rows.sum(axis=1, dtype=np.float64)

    if levels == 1:
        # Looked up: small products of matrices take ten times as long as the assignment.
        return lambda x, y: between[checked(x), checked(y).T] / scale
    return lambda x, y: _euclidean(decoded(x), decoded(y)) / scale


def _euclidean(x: Float[ndarray, "N D"], y: Float[ndarray, "M D"]) -> Float[ndarray, "N M"]:
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(squares, 0.0))


def _window_hashes(codes: Int[ndarray, "T K"], frames: int) -> ndarray:
    """uint64 [T - frames + 1]: of every window, the polynomial of its tokens modulo 2^64 (Karp and
    Rabin 1987), from sums of the whole; [0] where it is shorter than a window."""
    length, levels = codes.shape
    count = length - frames + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    base, inverse = 0x9E3779B97F4A7C15, pow(0x9E3779B97F4A7C15, -1, 2**64)
    with np.errstate(over="ignore"):
        powers, inverses = (
            np.cumprod(np.full(length, b, np.uint64), dtype=np.uint64) for b in (base, inverse)
        )
        # The levels of a frame as one number; spread, as small numbers cancel too easily.
        weights = np.cumprod(np.full(levels, 0xBF58476D1CE4E5B9, np.uint64), dtype=np.uint64)
        tokens = ((codes.astype(np.uint64) + np.uint64(1)) * weights).sum(1, dtype=np.uint64)
        tokens = tokens ^ (tokens >> np.uint64(29))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(tokens * powers, dtype=np.uint64)])
        return (sums[frames:] - sums[:count]) * inverses[:count]
