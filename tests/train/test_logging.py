"""Both writers leave event files that TensorBoard reads back."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgen.train.logging import make_writer, read_scalars


def write_and_read(folder, prefer_clu):
    writer = make_writer(folder, prefer_clu)
    writer.write_scalars(3, {"loss": 0.25})
    writer.write_audios(3, {"clip": np.zeros((1, 800, 1), np.float32)}, sample_rate=16000)
    writer.write_images(3, {"mel": np.zeros((1, 4, 4, 3), np.float32)})
    writer.flush()
    writer.close()
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_event_files_without_tensorflow(tmp_path):
    events = write_and_read(tmp_path, prefer_clu=False)
    (loss,) = events.Scalars("loss")
    assert (loss.step, loss.value) == (3, 0.25)
    assert read_scalars(tmp_path, "loss") == [(3, 0.25)]
    (clip,) = events.Audio("clip/0")
    assert clip.sample_rate == 16000 and clip.length_frames == 800
    (image,) = events.Images("mel/0")
    assert (image.width, image.height) == (4, 4)


@pytest.mark.tf
def test_event_files_through_clu(tmp_path):
    import tensorflow as tf

    events = write_and_read(tmp_path, prefer_clu=True)
    (event,) = events.Tensors("loss")
    assert event.step == 3 and float(tf.make_ndarray(event.tensor_proto)) == 0.25
    assert read_scalars(tmp_path, "loss") == [(3, 0.25)]
    assert {"clip", "mel"} <= set(events.Tags()["tensors"])
