"""What a generated or reconstructed clip leaves on disk, and how fast it was made."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from mgen import files, plot
from mgen.audio import io
from mgen.audio.loudness import normalise
from mgen.audio.resample import fit_length
from mgen.errors import UserError
from mgen.typing import ndarray


def write(
    folder: str | Path,
    name: str,
    audio: ndarray,
    sample_rate: int,
    codes: ndarray | None = None,
    about: dict[str, Any] | None = None,
    loudness: float | None = None,
) -> Path:
    """Writes `name`.wav and .png; with `codes` also .safetensors, with `about` also .json.

    Args:
      audio: float32 [T, C].
      codes: int32 [F, K].
      about: everything needed to make the clip again.
      loudness: LUFS to bring the clip to, within full scale; None leaves it.

    Returns the path of the WAV file.
    """
    folder = make_folder(folder)
    audio = np.asarray(audio, np.float32)
    if loudness is not None:
        audio = normalise(audio, sample_rate, loudness, max_peak=1.0)
    # A decoder may overshoot full scale; clipping would be heard.
    audio = audio / max(1.0, float(np.max(np.abs(audio), initial=0.0)))
    wav = folder / f"{name}.wav"
    io.write(wav, audio, sample_rate)
    plot.waveform_and_mel(wav.with_suffix(".png"), audio, sample_rate, title=name)
    if codes is not None:
        tensors = {"codes": np.ascontiguousarray(codes, np.int32)}
        with files.replacing(wav.with_suffix(".safetensors")) as temporary:
            safetensors.numpy.save_file(tensors, temporary)
    if about is not None:
        files.write_json(wav.with_suffix(".json"), about)
    return wav


def write_batch(
    folder: str | Path,
    made: tuple[ndarray, ndarray, ndarray],
    sample_rate: int,
    about: dict[str, Any],
    loudness: float | None,
    context: ndarray | None = None,
) -> list[Path]:
    """`write` for clips "seed<s>": seeds [B], codes [B, F, K] and audio [B, T, C]. What is said
    of each makes that one again. Beside stems made for a context [T, C] lies their mix with it,
    "seed<s>_mix"."""
    paths = []
    for seed, codes, audio in zip(*made):
        own = about | {"seed": int(seed), "n": 1, "best_of": 1}
        paths.append(write(folder, f"seed{seed}", audio, sample_rate, codes, own, loudness))
        if context is not None:
            mix = fit_length(audio, len(context)) + context
            paths.append(write(folder, f"seed{seed}_mix", mix, sample_rate, loudness=loudness))
    return paths


def make_folder(folder: str | Path) -> Path:
    """Creates `folder`; `UserError` where a file stands in the way or it may not be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create the folder ({error.strerror})") from error
    return Path(folder)


class Stopwatch:
    """Seconds spent in a `with` block: `total`, of which `compiling`."""

    total = compiling = 0.0

    def speed(self, seconds: float) -> float:
        """Seconds of audio made a second, compilation left out."""
        return seconds / max(self.total - self.compiling, 1e-9)

    def describe(self, seconds: float) -> str:
        """One line on `seconds` of audio made in this time."""
        return (
            f"{seconds:.1f} s of audio in {self.total:.1f} s ({self.compiling:.1f} s of them "
            f"compiling): {self.speed(seconds):.2f} s of audio a second"
        )


@contextlib.contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Times a block; what is dispatched in it must be read back in it."""
    watch = Stopwatch()

    def on_event(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            watch.compiling += duration_secs

    jax.monitoring.register_event_duration_secs_listener(on_event)
    start = time.perf_counter()
    try:
        yield watch
    finally:
        watch.total = time.perf_counter() - start
        jax.monitoring.unregister_event_duration_listener(on_event)


def write_summaries(folder: str | Path, summaries: dict[str, Any]) -> None:
    """Writes what `Task.summaries` returns: audio as WAV with its picture, images as PNG."""
    from matplotlib.image import imsave

    for name, value in summaries.items():
        kind, _, stem = name.partition("/")
        if kind == "audio":
            audio, sample_rate = value
            for index, clip in enumerate(np.asarray(audio)):
                write(folder, f"{stem}_{index}", clip, sample_rate)
        else:
            imsave(Path(folder) / f"{stem}.png", np.clip(np.asarray(value), 0.0, 1.0))
