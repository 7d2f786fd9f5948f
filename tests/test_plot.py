"""Pictures: written atomically, the same for the same audio, of any length."""

import numpy as np
import pytest

from mgen import plot


@pytest.mark.parametrize("shape", [(1,), (37, 2), (40_000, 1)])
def test_waveform_and_mel_of_any_length(tmp_path, shape):
    audio = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    plot.waveform_and_mel(tmp_path / "new" / "a.png", audio, 16000, "title")
    plot.waveform_and_mel(tmp_path / "new" / "b.png", audio, 16000, "title")
    first, second = sorted((tmp_path / "new").iterdir())
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_stems_page_draws_silence_as_the_floor(tmp_path):
    """A silent stem is black: drawn beside a loud one it differs from it, and two silences are
    alike.
    """
    noise = np.random.default_rng(0).uniform(-1, 1, (8000, 1)).astype(np.float32)
    silence = np.zeros_like(noise)
    notes = np.array([[0, 1, 60, 80, 1]], np.float32)
    pages = {"a": [noise, silence], "b": [noise, silence * 1e-9], "c": [noise, noise]}
    for name, stems in pages.items():
        plot.stems_page(tmp_path / f"{name}.png", stems, ["x", "y"], 8000, notes)
    a, b, c = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert a == b != c
    plot.stems_page(tmp_path / "no_notes.png", [noise], ["x"], 8000)
