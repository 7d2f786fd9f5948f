"""Every notebook runs from top to bottom."""

from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "colab"
# Run beside what they need, which takes a while to train.
ELSEWHERE = {
    "generate": "launch/test_demo_hierarchy.py",
    "stems": "launch/test_demo_stems.py",
}


@pytest.mark.slow
def test_notebook_runs(run_notebook):
    run_notebook(NOTEBOOKS / "quickstart.ipynb")


def test_every_notebook_has_a_test():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {"quickstart", *ELSEWHERE}
    for name, path in ELSEWHERE.items():
        assert f"{name}.ipynb" in (Path(__file__).parent / path).read_text()
