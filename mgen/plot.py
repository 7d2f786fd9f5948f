"""Pictures of audio and notes as PNG files: matplotlib's object interface, no display, no state."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mgen import files
from mgen.inputs.record import OFFSET, ONSET, PITCH, STEM

_PAGE_WIDTH = 12.0  # inches
_DPI = 100
_FLOOR_DB = -80.0


def save(path: str | os.PathLike[str], figure: Any) -> None:
    """Writes a figure as PNG, atomically; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    with files.replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def waveform_and_mel(
    path: str | os.PathLike[str], audio: np.ndarray, sample_rate: int, title: str = ""
) -> None:
    """Draws a waveform above its mel spectrogram (dB below the maximum).

    Args:
      path: PNG to write.
      audio: float [T] or [T, C]; channels are averaged.
      sample_rate: Hz.
      title: heading.
    """
    mono = _mono(audio)
    figure = _figure(4.5)
    wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    _draw_waveform(wave, mono, sample_rate)
    image = _draw_mel(spectrum, mono, sample_rate)
    spectrum.set_xlabel("s")
    figure.colorbar(image, ax=[wave, spectrum], label="dB", pad=0.01, fraction=0.03)
    if title:
        wave.set_title(title)
    save(path, figure)


def stems_page(
    path: str | os.PathLike[str],
    stems: Sequence[np.ndarray],
    names: Sequence[str],
    sample_rate: int,
    notes: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Draws a page: a row a stem with its mel spectrogram and, beside it, its piano roll.

    Args:
      path: PNG to write.
      stems: S arrays, float [T, C].
      names: S names.
      sample_rate: Hz.
      notes: float [N, 5] as `Record.notes`, s from the start of `stems`; None draws no rolls.
      title: heading of the page.
    """
    rows, columns = len(names), 1 if notes is None else 2
    figure = _figure(1.2 + 1.8 * rows)
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for index, name in enumerate(names):
        _draw_mel(axes[index, 0], _mono(stems[index]), sample_rate)
        axes[index, 0].set_ylabel(f"{name}\nHz")
        if notes is not None:
            _draw_roll(axes[index, 1], notes[notes[:, STEM] == index])
            axes[index, 1].set_ylabel("MIDI pitch")
    for axis in axes[-1]:
        axis.set_xlim(0, max(map(len, stems)) / sample_rate)
        axis.set_xlabel("s")
    if title:
        figure.suptitle(title)
    save(path, figure)


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PAGE_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _mono(audio: np.ndarray) -> np.ndarray:
    audio = np.asarray(audio, np.float32)
    return audio if audio.ndim == 1 else audio.mean(axis=1)


def _draw_waveform(axis: Any, mono: np.ndarray, sample_rate: int) -> None:
    """The envelope between minimum and maximum: a point a pixel, however long the audio is."""
    columns = min(len(mono), int(_PAGE_WIDTH * _DPI))
    edges = np.linspace(0, len(mono), columns, endpoint=False).astype(int)
    times = edges / sample_rate
    low, high = np.minimum.reduceat(mono, edges), np.maximum.reduceat(mono, edges)
    axis.fill_between(times, low, high, linewidth=0.5, step="post")
    axis.set_ylim(-1, 1)
    axis.set_ylabel("amplitude")


def _draw_mel(axis: Any, mono: np.ndarray, sample_rate: int) -> Any:
    from mgen.audio import mel

    # A column a pixel at most; long audio is drawn with longer hops.
    n_fft = 1024
    hop = max(n_fft // 4, len(mono) // int(_PAGE_WIDTH * _DPI))
    frames = np.pad(mono, (n_fft // 2, n_fft // 2))
    starts = np.arange(0, len(mono), hop)
    window = np.hanning(n_fft + 1)[:-1]
    power = np.empty((len(starts), 80))
    filters = mel.filterbank(sample_rate, n_fft, 80)
    for row, start in zip(power, starts, strict=True):
        row[:] = np.abs(np.fft.rfft(frames[start : start + n_fft] * window)) ** 2 @ filters
    db = 10 * np.log10(np.maximum(power, 1e-10))
    top = float(db.max(initial=-100.0 - _FLOOR_DB))  # Silence, -100 dB, is drawn as the floor.
    image = axis.imshow(
        np.maximum(db - top, _FLOOR_DB).T,
        origin="lower",
        aspect="auto",
        vmin=_FLOOR_DB,
        vmax=0,
        extent=(0, len(mono) / sample_rate, 0, 80),
        cmap="magma",
    )
    _label_bands(axis, sample_rate)
    return image


def _label_bands(axis: Any, sample_rate: int) -> None:
    """Ticks at round frequencies on an axis of 80 mel bands."""
    from mgen.audio import mel

    hz = [f for f in (250, 500, 1000, 2000, 4000, 8000, 16000) if f < sample_rate / 2]
    per_band = float(mel.hz_to_mel(sample_rate / 2)) / 81
    axis.set_yticks([float(mel.hz_to_mel(f)) / per_band - 0.5 for f in hz], [str(f) for f in hz])
    axis.set_ylabel("Hz")


def _draw_roll(axis: Any, notes: np.ndarray) -> None:
    axis.barh(
        notes[:, PITCH],
        notes[:, OFFSET] - notes[:, ONSET],
        left=notes[:, ONSET],
        height=0.9,
    )
    low, high = (notes[:, PITCH].min(), notes[:, PITCH].max()) if len(notes) else (60, 72)
    axis.set_ylim(low - 2, high + 2)
