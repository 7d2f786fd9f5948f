"""Manifests: round trip, refusal by field, nothing half-written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgen import manifest, tree
from mgen.errors import UserError


def test_round_trip_and_refusal_by_field(tmp_path):
    manifest.write(tmp_path, {"kind": "tokens", "codebooks": 4})
    about = manifest.read(tmp_path)
    manifest.require(about, tmp_path, kind="tokens", codebooks=4)
    with pytest.raises(UserError, match="codebooks is 4, expected 8"):
        manifest.require(about, tmp_path, kind="tokens", codebooks=8)
    assert [path.name for path in tmp_path.iterdir()] == [manifest.FILE]


def test_fields_of_fields(tmp_path):
    about = {"streams": {"acoustic": {"codebooks": 4, "frame_rate": 50.0}}, "parents": {}}
    manifest.require(about, tmp_path, streams={"acoustic": {"codebooks": 4}}, parents={})
    with pytest.raises(UserError, match=r"streams\.acoustic\.codebooks is 4, expected 8"):
        manifest.require(about, tmp_path, streams={"acoustic": {"codebooks": 8}})
    with pytest.raises(UserError, match=r"streams\.joint\.codebooks is None, expected 12"):
        manifest.require(about, tmp_path, streams={"joint": {"codebooks": 12}})


def test_claim_refuses_what_is_not_the_same(tmp_path):
    about = {"render": {"tempo": (0.9, 1.1)}, "parents": {"codec": "abc"}}
    manifest.claim(tmp_path, about)
    manifest.claim(tmp_path, about)
    with pytest.raises(UserError, match=r"parents\.codec is 'abc', expected 'def'"):
        manifest.claim(tmp_path, about | {"parents": {"codec": "def"}})
    with pytest.raises(UserError, match=r"has parents\.codec, expected none"):
        manifest.claim(tmp_path, {"render": about["render"]})


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_damaged_manifest_names_its_path(tmp_path, text):
    (tmp_path / manifest.FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        manifest.read(tmp_path)


def test_missing_manifest_names_the_folder(tmp_path):
    with pytest.raises(UserError, match=tmp_path.name):
        manifest.read(tmp_path)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_config_hash_ignores_order(config):
    backwards = dict(reversed(list(config.items())))
    assert manifest.config_hash(config) == manifest.config_hash(backwards)
    assert manifest.config_hash(config) != manifest.config_hash(config | {"other": 1})


def test_fingerprint_sees_every_bit():
    one = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.int32)}
    other = {"a": np.array([0, 0, -0.0], np.float32), "b": np.ones(2, np.int32)}
    assert tree.fingerprint(one) == tree.fingerprint({k: v.copy() for k, v in one.items()})
    assert tree.fingerprint(one) != tree.fingerprint(other)
    assert tree.fingerprint(one) != tree.fingerprint({"a": one["a"], "c": one["b"]})
    assert tree.size(one) == 5
