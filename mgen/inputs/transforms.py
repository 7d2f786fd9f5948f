"""Augmentations of stems on the host: pure functions of arrays and an explicit random generator.

Stems are float32 [S, T, C], masks bool [S]; arrays given are never written to. The mix is always
the sum of the stems, so whatever changes a stem changes the mix.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mgen.audio import loudness

SILENCE_DB = -120.0


def level_db(audio: np.ndarray) -> float:
    """RMS level in dB of full scale, not below `SILENCE_DB`."""
    return max(SILENCE_DB, loudness.gain_to_db(loudness.rms(audio)))


def limit_peak(stems: np.ndarray, peak: float = 1.0) -> np.ndarray:
    """Scales all stems alike so that neither the mix nor a stem leaves [-peak, peak]."""
    highest = max(loudness.peak(stems), loudness.peak(stems.sum(0)))
    return stems if highest <= peak else stems * np.float32(peak / highest)


def random_gain(
    stems: np.ndarray, gain_db: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """One gain for all stems, uniform in dB; less where the mix would leave [-1, 1]."""
    return limit_peak(stems * np.float32(loudness.db_to_gain(rng.uniform(*gain_db))))


def normalise_loudness(stems: np.ndarray, sample_rate: int, target: float) -> np.ndarray:
    """Brings the mix to `target` LUFS, or less where it would leave [-1, 1]; silence stays."""
    found = loudness.integrated_loudness(stems.sum(0), sample_rate)
    if found == -np.inf:
        return stems
    return limit_peak(stems * np.float32(loudness.db_to_gain(target - found)))


def swap_channels(stems: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Left for right in every second call; mono stays."""
    return stems[..., ::-1] if stems.shape[-1] == 2 and rng.random() < 0.5 else stems


def augment(stems: np.ndarray, config: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Loudness, gain and channel swap of stems [S, T, C] by the `data` part of a config (see
    `mgen.inputs.pipeline`), in this order."""
    if config["loudness"] is not None:
        stems = normalise_loudness(stems, config["sample_rate"], config["loudness"])
    if tuple(config["gain_db"]) != (0.0, 0.0):
        stems = random_gain(stems, config["gain_db"], rng)
    return swap_channels(stems, rng) if config["swap_channels"] else stems


def drop_stems(
    stems: np.ndarray, mask: np.ndarray, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Silences each present stem with `probability`; one is always left.

    Returns:
      stems and mask, without the dropped ones.
    """
    kept = mask & (rng.random(len(mask)) >= probability)
    if not kept.any() and mask.any():
        kept[rng.choice(np.flatnonzero(mask))] = True
    return np.where(kept[:, None, None], stems, np.float32(0)), kept


def loudest_crop(
    draw: Callable[[], np.ndarray],
    min_level: float,
    attempts: int,
    wanted: Sequence[int] = (),
    min_sounding: int = 0,
) -> np.ndarray:
    """The first of `attempts` draws of stems whose mix reaches `min_level` dB, as do at least
    `min_sounding` of the stems `wanted`; else one with the most of these that was drawn, and of
    such the loudest."""
    best, best_rank = draw(), (-1, -np.inf)
    for attempt in range(attempts):
        stems = best if attempt == 0 else draw()
        level = level_db(stems.sum(0))
        sounding = sum(level_db(stems[stem]) >= min_level for stem in wanted)
        rank = min(sounding, min_sounding), level
        if rank > best_rank:
            best, best_rank = stems, rank
        if level >= min_level and sounding >= min_sounding:
            break
    return best
