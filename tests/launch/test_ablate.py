"""An ablation over tokens in a folder, at smoke size."""

import json

import numpy as np
import pytest

from mgen import manifest
from mgen.configs import hierarchy_base
from mgen.inputs import attributes, tokens

CONFIG = """
from mgen.configs.ablation.patterns import get_config
VARIANTS = ("parallel", "flatten")
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six pieces a split of acoustic tokens, three codes of each codebook."""
    folder = tmp_path_factory.mktemp("ablation") / "tokens"
    streams = {"acoustic": hierarchy_base.TINY["acoustic"]}
    manifest.write(folder, {"streams": streams, "parents": {"codec": "c"}, "kind": tokens.KIND})
    splits, rng = ("train", "validation", "test"), np.random.default_rng(0)
    for split in splits:
        with tokens.ShardWriter(folder, split, 0, 1) as writer:
            for index in range(6):
                codes = rng.integers(0, 3, (80, 4)).astype(np.int32)
                fields = np.zeros(len(attributes.NAMES), int)
                writer.write(id=f"{split}/{index}", attributes=fields, acoustic=codes)
    tokens.finish(folder, splits, 1)
    return folder


@pytest.mark.slow
def test_variants_stand_in_one_table(here, dataset, tmp_path):
    config, out = tmp_path / "patterns.py", tmp_path / "out"
    config.write_text(CONFIG)
    given = (f"--config={config}:smoke", f"--dataset={dataset}", f"--out={out}")
    printed = here("ablate", *given).stdout
    report = json.loads((out / "report.json").read_text())
    assert report.keys() == {"parallel", "flatten"}
    for name, steps in (("parallel", 50), ("flatten", 200)):
        found, evaluated = report[name], json.loads((out / name / "report.json").read_text())
        assert found.pop("generation_steps") == steps  # of 1 s at 50 Hz, 4 codebooks
        assert found.pop("steps_per_second") > 0
        assert found == {field: evaluated[field] for field in found}
        assert found.keys() == {"parameters", "cross_entropy", "unigram_cross_entropy"}
        row = next(line for line in printed.splitlines() if line.startswith(f"│ {name}"))
        assert f"{found['cross_entropy']:.3f}" in row and str(steps) in row
    assert report["parallel"]["parameters"] == report["flatten"]["parameters"]


def test_a_config_without_variants_is_refused(here, tmp_path):
    given = ("--config=hierarchy/tiny_musicgen", "--dataset=d", f"--out={tmp_path}")
    done = here("ablate", *given, check=False)
    assert done.returncode == 1 and "no VARIANTS" in done.stderr
    assert done.stderr.startswith("error:") and not list(tmp_path.iterdir())
