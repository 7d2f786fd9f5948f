"""Audio files: exact crops by seeking, and atomic, bit-exact writing.

Integers are scaled by 2**(bits - 1) in both directions, so 16- and 24-bit audio survives
`read(write(x))` unchanged (libsndfile itself writes with 2**15 - 1 and reads with 2**15).
"""

import dataclasses
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mgen import files
from mgen.audio.resample import fit_length, mix_channels, num_samples, resample, resampled_length
from mgen.errors import UserError

Source: TypeAlias = str | os.PathLike[str] | bytes

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")  # What a search through a folder takes for audio.
BITS = {"PCM_16": 16, "PCM_24": 24}
# Seconds of input on either side of a crop that is resampled: longer than half of soxr HQ's filter
# from 4 kHz up.
_RESAMPLE_MARGIN = 0.03
# Samples decoded before a crop of an MP3: its frames borrow bits from the frames before them.
_MP3_LEAD = 40 * 1152
# Writers to a pipe put a size near 2**31 or 2**32 into the header of a WAV; such a file is whole.
_STREAMED_SIZE = 0x7FFF0000
# Bytes of samples in a WAV, whose header counts 2**32 with itself among them.
_WAV_BYTES = 2**32 - 2**10


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """The header of an audio file: Hz, samples a channel, channels, subtype such as "PCM_16"."""

    sample_rate: int
    samples: int
    channels: int
    subtype: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / self.sample_rate

    @property
    def bits(self) -> int:
        """Bits of PCM that hold the audio: 16 for 8- and 16-bit and lossy files, else 24."""
        return 24 if self.subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE") else 16


def info(source: Source) -> AudioInfo:
    """The header of an audio file (a path, or its bytes).

    Raises:
      UserError: missing, a directory, not audio, empty, more than two channels, or a WAV shorter
        than its header says.
    """
    with _open(source) as file:
        return AudioInfo(file.samplerate, file.frames, file.channels, file.subtype)


def read(
    source: Source,
    *,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int | None = None,
    channels: int | None = None,
    expect_sample_rate: int | None = None,
) -> np.ndarray:
    """Reads a file, or the crop of `duration` seconds at `start`, decoding no more than the crop.

    Args:
      source: path, or the bytes of a file.
      start: s. The first sample is `round(start * rate)` of the output's rate.
      duration: s; None reads to the end. The crop is exactly `round(duration * rate)` samples:
        what lies past the end is zeros.
      sample_rate: Hz to resample to; None keeps the file's. A resampled crop equals the slice of
        the whole file resampled, to 1e-6 of its peak.
      channels: 1 or 2; None keeps the file's.
      expect_sample_rate: refuse a file of another rate instead of resampling.

    Returns:
      float32 [T, C], nominally in [-1, 1].

    Raises:
      UserError: one line for a missing, non-audio, empty or truncated file, NaN or infinite
        samples, more than two channels, another rate than expected, or a start that is negative or
        past the end.
    """
    with _open(source) as file:
        name, source_rate = _name(source), file.samplerate
        if expect_sample_rate is not None and source_rate != expect_sample_rate:
            raise UserError(
                f"{name}: sample rate is {source_rate} Hz, expected {expect_sample_rate} Hz"
            )
        rate = sample_rate or source_rate
        total = resampled_length(file.frames, source_rate, rate)
        first = num_samples(start, rate)
        if not 0 <= first < total:
            length = file.frames / source_rate
            raise UserError(
                f"{name}: start is {start:g} s, expected 0 <= start < {length:g} s, its length"
            )
        count = total - first if duration is None else num_samples(duration, rate)
        if count < 1:
            raise UserError(f"{name}: duration is {duration} s, expected at least one sample")
        available = min(count, total - first)
        if rate == source_rate:
            audio = _mixed(_decode(file, source, first, available), channels)
        else:
            audio = _resampled_crop(file, source, first, available, rate, channels)
    return fit_length(audio, count)


def _resampled_crop(
    file: Any, source: Source, first: int, count: int, rate: int, channels: int | None
) -> np.ndarray:
    """Samples [first, first + count) of the file at `rate`, from the input they depend on."""
    source_rate = file.samplerate
    divisor = gcd(source_rate, rate)
    # Input and output samples coincide once a block; starting at a block keeps the phase of the
    # whole file.
    block_in, block_out = source_rate // divisor, rate // divisor
    margin = round(_RESAMPLE_MARGIN * source_rate)
    block = max(0, (first * source_rate // rate - margin) // block_in)
    begin = block * block_in
    end = min(file.frames, -(-(first + count) * source_rate // rate) + margin)
    audio = resample(_mixed(_decode(file, source, begin, end - begin), channels), source_rate, rate)
    return fit_length(audio[first - block * block_out :], count)


def _mixed(audio: np.ndarray, channels: int | None) -> np.ndarray:
    return audio if channels is None else mix_channels(audio, channels)


def _decode(file: Any, source: Source, first: int, count: int) -> np.ndarray:
    """`count` samples from `first`, float32 [count, C]; raises on an early end and on NaN."""
    lead = min(first, _MP3_LEAD) if file.format == "MP3" else 0
    try:
        if first:
            file.seek(first - lead)
        audio = file.read(lead + count, dtype="float32", always_2d=True)[lead:]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{_name(source)}: damaged or truncated audio ({_reason(error)})"
        ) from error
    if len(audio) != count:
        raise UserError(
            f"{_name(source)}: truncated: ends at sample {first + len(audio)},"
            f" its header says {file.frames}"
        )
    if not np.isfinite(audio).all():
        raise UserError(f"{_name(source)}: holds NaN or infinite samples, expected finite audio")
    return audio


@contextmanager
def _open(source: Source) -> Iterator[Any]:
    """An open `soundfile.SoundFile` whose header has been checked."""
    import soundfile

    name = _name(source)
    if not isinstance(source, bytes):
        if os.path.isdir(source):
            raise UserError(f"{name}: is a directory, expected an audio file")
        if not os.path.exists(source):
            raise UserError(f"{name}: no such file, expected an audio file")
    try:
        file = soundfile.SoundFile(
            io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"{name}: not an audio file that can be read ({_reason(error)})") from error
    with file:
        if file.frames <= 0:
            raise UserError(f"{name}: empty, expected at least one sample of audio")
        if file.channels > 2:
            raise UserError(f"{name}: {file.channels} channels, expected mono or stereo")
        _require_whole(file, name)
        yield file


def _require_whole(file: Any, name: str) -> None:
    """libsndfile shortens a truncated WAV or AIFF silently and tells only in its log."""
    for chunk, stated, found in re.findall(
        r"(data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info
    ):
        if int(found) < int(stated) < _STREAMED_SIZE:
            raise UserError(
                f"{name}: truncated: {found} bytes of {chunk}, its header says {stated}"
            )


def _name(source: Source) -> str:
    return f"<{len(source)} bytes of audio>" if isinstance(source, bytes) else os.fspath(source)


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the object's address and the full stop."""
    text = str(getattr(error, "error_string", error))
    return text.strip().rstrip(".")


def write(
    path: str | os.PathLike[str], audio: np.ndarray, sample_rate: int, subtype: str = "PCM_16"
) -> None:
    """Writes audio atomically: to a temporary name in the same folder, then renamed.

    Args:
      path: the suffix chooses the container (.wav, .flac, .ogg).
      audio: float [T] or [T, C]. PCM clips what lies outside [-1, 1] and warns.
      sample_rate: Hz.
      subtype: libsndfile's name of the encoding ("PCM_16", "PCM_24", "FLOAT", "VORBIS").

    Raises:
      UserError: NaN or infinite samples, no samples, three or more channels, or a container that
        cannot hold `subtype`.
    """
    path = Path(path)
    container = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}.get(path.suffix.lower())
    if container is None:
        raise UserError(f"{path}: suffix is {path.suffix!r}, expected .wav, .flac or .ogg")
    data = _encode(audio, sample_rate, container, subtype, str(path))
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def writer(
    path: str | os.PathLike[str], sample_rate: int, channels: int
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes a WAV of 32-bit floats block by block, float [t, C].

    As in `write` the file has a temporary name at first: it gets its own at the end of the `with`
    block, and is removed where that ends in an error.

    Raises:
      UserError: another suffix than .wav, NaN or infinite samples, more than a WAV can hold.
    """
    import soundfile

    path, written = Path(path), 0
    if path.suffix.lower() != ".wav":
        raise UserError(f"{path}: suffix is {path.suffix!r}, expected .wav")
    settings = dict(samplerate=sample_rate, channels=channels, subtype="FLOAT", format="WAV")
    with (
        files.replacing(path) as temporary,
        soundfile.SoundFile(temporary, "w", **settings) as file,
    ):

        def write_block(audio: np.ndarray) -> None:
            nonlocal written
            written += 4 * audio.size
            if written > _WAV_BYTES:
                raise UserError(f"{path}: longer than the 4 GiB that a WAV can hold")
            if not np.isfinite(audio).all():
                raise UserError(f"{path}: audio holds NaN or infinite samples")
            file.write(audio)

        yield write_block


def encode_flac(audio: np.ndarray, sample_rate: int, bits: int = 16) -> bytes:
    """FLAC file of `audio`, float [T] or [T, C], at 16 or 24 bits; errors as in `write`."""
    return _encode(audio, sample_rate, "FLAC", f"PCM_{bits}", "FLAC")


def _encode(audio: np.ndarray, sample_rate: int, container: str, subtype: str, name: str) -> bytes:
    import soundfile

    audio = np.asarray(audio, np.float32)
    audio = audio[:, None] if audio.ndim == 1 else audio
    if audio.ndim != 2 or not 1 <= audio.shape[1] <= 2 or not len(audio):
        raise UserError(
            f"{name}: audio of shape {list(audio.shape)}, expected [T] or [T, C], T > 0, C 1 or 2"
        )
    if not np.isfinite(audio).all():
        raise UserError(f"{name}: audio holds NaN or infinite samples, nothing was written")
    if not soundfile.check_format(container, subtype):
        raise UserError(f"{name}: {container} cannot hold {subtype}")
    if subtype in BITS:
        audio = _quantise(audio, BITS[subtype], name)
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, sample_rate, format=container, subtype=subtype)
    return buffer.getvalue()


def _quantise(audio: np.ndarray, bits: int, name: str) -> np.ndarray:
    """Rounds to `bits`, left-aligned in int16 or int32 as libsndfile expects."""
    peak = float(np.abs(audio).max())
    if peak > 1.0:
        warnings.warn(f"{name}: audio peaks at {peak:.3g} and is clipped to 1", stacklevel=4)
    scale = 1 << (bits - 1)
    integers = np.clip(np.rint(audio.astype(np.float64) * scale), -scale, scale - 1)
    if bits == 16:
        return integers.astype(np.int16)
    return integers.astype(np.int32) << (32 - bits)
