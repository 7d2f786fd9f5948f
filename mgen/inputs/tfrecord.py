"""TFRecord files of tf.train.Example, read and written without TensorFlow.

  record   = length u64 | masked CRC-32C of it u32 | data | masked CRC-32C of data u32
  Example  = {name: list of bytes, of float32 or of int64}, a protocol buffer

SeqIO's offline cache consists of these. Nothing in mgen's core dependencies parses them, and a
Python object for each of the ten thousand codes of a piece would be slow, hence this module: lists
of numbers are decoded as arrays.
"""

import functools
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import numpy as np

Values: TypeAlias = np.ndarray | list[bytes]

_CASTAGNOLI = 0x82F63B78  # CRC-32C, bits reflected
_HEADER, _FOOTER = 12, 4  # bytes around the data of a record
_LENGTH_DELIMITED = 2  # wire type of messages, text and packed numbers
_BYTES, _FLOAT, _INT64 = 1, 2, 3  # fields of tf.train.Feature


def frame(data: bytes) -> bytes:
    """The record that holds `data`."""
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", _masked(crc32c(part))) for part in (length, data))
    return length + next(checksums) + data + next(checksums)


def unframe(record: bytes) -> bytes:
    """Inverse of `frame`; `ValueError` where length or checksums do not hold."""
    if len(record) < _HEADER + _FOOTER:
        raise ValueError(f"record of {len(record)} bytes")
    length, data = record[:8], record[_HEADER:-_FOOTER]
    checksums = struct.unpack("<I", record[8:_HEADER]) + struct.unpack("<I", record[-_FOOTER:])
    if struct.unpack("<Q", length)[0] != len(data):
        raise ValueError("record of another length than its header says")
    if checksums != (_masked(crc32c(length)), _masked(crc32c(data))):
        raise ValueError("checksum does not hold")
    return data


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), in vector operations: neighbours are joined pair by pair.

    The checksum is linear over GF(2): that of two pieces is the first one's, carried through as
    many zero bytes as the second has, plus the second one's; leading zeros add nothing.
    """
    parts, level = _byte_table()[np.frombuffer(data, np.uint8)], 0
    while len(parts) > 1:
        if len(parts) % 2:
            parts = np.concatenate([np.zeros(1, np.uint32), parts])
        parts = _carry(parts[0::2], level) ^ parts[1::2]
        level += 1
    start = np.full(1, 0xFFFFFFFF, np.uint32)
    for bit in range(len(data).bit_length()):
        if len(data) >> bit & 1:
            start = _carry(start, bit)
    return int(start[0] ^ (parts[0] if len(parts) else 0)) ^ 0xFFFFFFFF


def encode_example(features: Mapping[str, np.ndarray | bytes]) -> bytes:
    """A serialised tf.train.Example: integers (not negative) and floats of any shape, flattened;
    bytes as they are. Equal features give equal bytes."""
    entries = []
    for name, value in sorted(features.items()):
        if isinstance(value, bytes):
            kind, packed = _BYTES, value
        elif np.issubdtype(value.dtype, np.integer):
            kind, packed = _INT64, _encode_varints(value.ravel())
        else:
            kind, packed = _FLOAT, value.astype("<f4").tobytes()
        feature = _field(kind, _field(1, packed))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def decode_example(data: bytes, names: Collection[str] | None = None) -> dict[str, Values]:
    """The features `names` (all by default) of a serialised tf.train.Example: int64 [n], float32
    [n] or a list of bytes each. `ValueError` where `data` is none."""
    features: dict[str, Values] = {}
    for _, message in _fields(data):
        for _, entry in _fields(message):
            parts = dict(_fields(entry))
            if 1 not in parts or 2 not in parts:
                raise ValueError("a feature without name or value")
            name = bytes(parts[1]).decode()
            if names is None or name in names:
                features[name] = _values(parts[2])
    return features


def _values(feature: memoryview) -> Values:
    for kind, message in _fields(feature):
        values = [value for _, value in _fields(message)]
        if kind == _BYTES:
            return [bytes(value) for value in values]
        packed = values[0] if values else memoryview(b"")
        return np.frombuffer(packed, "<f4") if kind == _FLOAT else _decode_varints(packed)
    return []


def _field(number: int, payload: bytes) -> bytes:
    size = _encode_varints(np.array([len(payload)]))
    return bytes([number << 3 | _LENGTH_DELIMITED]) + size + payload


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, payload) of every field of a message; all of an Example's are length-delimited."""
    view, at = memoryview(data), 0
    while at < len(view):
        tag = view[at]
        if tag & 7 != _LENGTH_DELIMITED or tag >= 128:
            raise ValueError(f"field tag {tag} at byte {at}: no tf.train.Example")
        size, shift, at = 0, 0, at + 1
        while True:
            if at >= len(view):
                raise ValueError("message cut short")
            size |= (view[at] & 127) << shift
            at, shift, last = at + 1, shift + 7, view[at] < 128
            if last:
                break
        if at + size > len(view):
            raise ValueError("message cut short")
        yield tag >> 3, view[at : at + size]
        at += size


def _encode_varints(values: np.ndarray) -> bytes:
    if values.min(initial=0) < 0:
        raise ValueError("negative integers: expected codes, counts or classes")
    rest = values.astype(np.uint64)
    sizes = np.ones(len(rest), np.int64)
    for j in range(1, 10):
        sizes += rest >= np.uint64(1 << 7 * j)
    starts = np.cumsum(sizes) - sizes
    out = np.zeros(int(sizes.sum()), np.uint8)
    for j in range(int(sizes.max(initial=0))):
        here = sizes > j
        more = (sizes[here] > j + 1).astype(np.uint8) << 7
        out[starts[here] + j] = (rest[here] >> np.uint64(7 * j) & np.uint64(127)).astype(np.uint8)
        out[starts[here] + j] |= more
    return out.tobytes()


def _decode_varints(packed: memoryview) -> np.ndarray:
    data = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 128)
    if len(data) and (not len(ends) or ends[-1] != len(data) - 1):
        raise ValueError("a number cut short")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    sizes = ends - starts + 1
    values = (data[starts] & 127).astype(np.int64)
    for j in range(1, int(sizes.max(initial=1))):
        here = np.flatnonzero(sizes > j)
        values[here] |= (data[starts[here] + j] & 127).astype(np.int64) << 7 * j
    return values


def _masked(checksum: int) -> int:
    """The rotation and offset that TFRecord adds, so that data may itself hold checksums."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _byte_table() -> np.ndarray:
    """uint32 [256]: remainder of every byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_CASTAGNOLI), table >> 1)
    return table


@functools.cache
def _carry_tables(level: int) -> np.ndarray:
    """uint32 [4, 256]: what each byte of a remainder becomes behind 2**level zero bytes."""
    if level:
        return _carry(_carry_tables(level - 1), level - 1)
    shifts = np.arange(256, dtype=np.uint32)
    return np.stack([_byte_table(), shifts, shifts << 8, shifts << 16])


def _carry(remainders: np.ndarray, level: int) -> np.ndarray:
    tables = _carry_tables(level)
    parts = [tables[byte][remainders >> np.uint32(8 * byte) & 255] for byte in range(4)]
    return parts[0] ^ parts[1] ^ parts[2] ^ parts[3]
