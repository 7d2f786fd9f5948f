"""`mgen preflight`: programs are kept, refusals are a line."""

import gzip
import json

import pytest


def test_a_program_is_compiled_once(mgen, tmp_path):
    pytest.importorskip("libtpu")
    config = ("--config=hierarchy/tiny_musicgen", "--config.train.mesh=data=2,fsdp=2", "--quick")
    command = ("preflight", *config, "--topology=v5e:2x2", f"--out={tmp_path}")
    first = mgen(*command).stdout
    (kept,) = tmp_path.iterdir()
    found = json.loads(gzip.decompress(kept.read_bytes()))
    assert found["peak"] > found["arguments"] > 0 and "all-gather" in found["text"]
    assert "all-gather: " in first and "v5e:2x2" in first
    # What stands there is believed.
    kept.write_bytes(gzip.compress(json.dumps(found | {"seconds": 12345.0}).encode()))
    assert "12345 s" in mgen(*command).stdout
    assert "data=4" in mgen(*command, "--mesh=data=4").stdout and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--all"], "expected --topology"),
        (["--all", "--pods"], "expected one of --config, --all and --pods"),
        (["--config=hierarchy/tiny_musicgen", "--topology=v5e:7x9"], "a shape of that chip"),
        (["--config=hierarchy/tiny_musicgen", "--topology=v9x:2x2"], "expected CHIP:SHAPE"),
    ],
)
def test_what_cannot_be_compiled_is_said(flags, reason, mgen, tmp_path):
    done = mgen("preflight", *flags, f"--out={tmp_path}", check=False)
    assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr
