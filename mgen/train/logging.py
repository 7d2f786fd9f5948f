"""Metric writers: TensorBoard event files and the console.

`clu.metric_writers` needs TensorFlow to write event files. Where TensorFlow is not installed,
`EventFileWriter` below writes the same scalars, images and audio through tensorboard's own record
writer, behind the same method names.
"""

import importlib.util
import io
import os
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mgen.errors import UserError
from mgen.typing import ndarray


class MetricWriter(Protocol):
    """The part of clu's `MetricWriter` that the loop uses."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None: ...
    def write_images(self, step: int, images: dict[str, ndarray]) -> None: ...
    def write_audios(self, step: int, audios: dict[str, ndarray], *, sample_rate: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def make_writer(folder: str | Path, prefer_clu: bool = True) -> MetricWriter:
    """A writer of TensorBoard event files into `folder`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create the folder ({error.strerror})") from error
    if prefer_clu and importlib.util.find_spec("tensorflow") is not None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from clu import metric_writers

        return metric_writers.SummaryWriter(os.fspath(folder))
    return EventFileWriter(folder)


def read_scalars(folder: str | Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar from the event files in `folder`, oldest first."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    return [
        (event.step, float(tensor_util.make_ndarray(value.tensor)))
        for path in sorted(Path(folder).glob("events.out.tfevents.*"))
        for event in EventFileLoader(os.fspath(path)).Load()
        for value in event.summary.value
        if value.tag == name
    ]


class EventFileWriter:
    """TensorBoard events without TensorFlow; see `MetricWriter`. Images are [N, H, W, 3] in [0, 1],
    audio is [N, T, C]."""

    def __init__(self, folder: str | Path):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter as Writer

        self._writer = Writer(os.fspath(folder))

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self._add(step, [{"tag": tag, "simple_value": float(v)} for tag, v in scalars.items()])

    def write_images(self, step: int, images: dict[str, ndarray]) -> None:
        from matplotlib.image import imsave
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = []
        for tag, batch in images.items():
            for index, image in enumerate(np.clip(np.asarray(batch), 0.0, 1.0)):
                png = io.BytesIO()
                imsave(png, image, format="png")
                encoded = Summary.Image(
                    height=image.shape[0],
                    width=image.shape[1],
                    colorspace=image.shape[2],
                    encoded_image_string=png.getvalue(),
                )
                values.append({"tag": f"{tag}/{index}", "image": encoded})
        self._add(step, values)

    def write_audios(self, step: int, audios: dict[str, ndarray], *, sample_rate: int) -> None:
        import soundfile
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = []
        for tag, batch in audios.items():
            for index, audio in enumerate(np.asarray(batch)):
                wav = io.BytesIO()
                soundfile.write(wav, audio, sample_rate, format="WAV", subtype="PCM_16")
                encoded = Summary.Audio(
                    sample_rate=sample_rate,
                    num_channels=audio.shape[-1],
                    length_frames=audio.shape[0],
                    encoded_audio_string=wav.getvalue(),
                    content_type="audio/wav",
                )
                values.append({"tag": f"{tag}/{index}", "audio": encoded})
        self._add(step, values)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))
