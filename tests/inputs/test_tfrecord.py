"""TFRecord and tf.train.Example without TensorFlow: what TensorFlow and TFDS read and write."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgen.inputs import tfrecord

LARGEST = 2**63 - 1


def test_checksum() -> None:
    # RFC 3720, section B.4.
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA
    assert tfrecord.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert tfrecord.crc32c(bytes(range(32))) == 0x46DD794E
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(b"") == 0 and tfrecord.crc32c(b"a") == 0xC1D04330


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, LARGEST), max_size=30),
    st.lists(st.floats(width=32, allow_nan=False), max_size=10),
    st.binary(max_size=200),
)
def test_round_trip(integers: list[int], floats: list[float], data: bytes) -> None:
    features = {"a": np.array(integers, np.int64), "ü": np.array(floats, np.float32), "c": data}
    encoded = tfrecord.unframe(tfrecord.frame(tfrecord.encode_example(features)))
    found = tfrecord.decode_example(encoded)
    assert np.array_equal(found["a"], integers) and np.array_equal(found["ü"], floats)
    assert found["c"] == [data]
    assert tfrecord.decode_example(encoded, ["c"]).keys() == {"c"}


def test_same_message_as_the_reference_protocol_buffer() -> None:
    proto = pytest.importorskip("tensorflow_datasets.proto").tf_example_pb2
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "codes": rng.integers(0, 1 << 20, (50, 3)),
        "vector": rng.normal(size=(4, 2)).astype(np.float32),
        "id": b"piece/1",
        "empty": np.zeros((0, 4), np.int32),
    }
    parsed = proto.Example.FromString(tfrecord.encode_example(values)).features.feature
    assert list(parsed["codes"].int64_list.value) == values["codes"].ravel().tolist()
    assert list(parsed["vector"].float_list.value) == values["vector"].ravel().tolist()
    assert list(parsed["id"].bytes_list.value) == [b"piece/1"]
    assert parsed["empty"].WhichOneof("kind") == "int64_list"
    example = proto.Example()
    example.features.feature["codes"].int64_list.value.extend(values["codes"].ravel().tolist())
    example.features.feature["vector"].float_list.value.extend(values["vector"].ravel().tolist())
    example.features.feature["ids"].bytes_list.value.extend([b"x", b"", b"yz"])
    found = tfrecord.decode_example(example.SerializeToString())
    assert np.array_equal(found["codes"], values["codes"].ravel())
    assert np.array_equal(found["vector"], values["vector"].ravel())
    assert found["ids"] == [b"x", b"", b"yz"]


@pytest.mark.parametrize("cut", [1, 9, 13, -1, -5])
def test_damaged_records(cut: int) -> None:
    record = tfrecord.frame(tfrecord.encode_example({"codes": np.arange(300)}))
    with pytest.raises(ValueError):
        tfrecord.unframe(record[:cut])
    broken = bytearray(record)
    broken[cut] ^= 4
    with pytest.raises(ValueError):
        tfrecord.unframe(bytes(broken))


def test_what_is_no_example() -> None:
    with pytest.raises(ValueError, match="negative"):
        tfrecord.encode_example({"codes": np.array([3, -1])})
    encoded = tfrecord.encode_example({"codes": np.arange(300)})
    for data in (encoded[:-1], b"\x08\x01", b"\x0a\xff", b"\x0a\x03\x0a\x01\x0a"):
        with pytest.raises(ValueError):
            tfrecord.decode_example(data)
