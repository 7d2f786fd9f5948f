"""Train and score every variant of an ablation, one table in the end. Resumes.

  mgen ablate --config=ablation/patterns --dataset=TOKENS --out=out/patterns
  mgen ablate --config=ablation/patterns:smoke --dataset=TOKENS --out=/tmp/patterns

The config names its variants in VARIANTS and takes one of them as its argument. Workdirs go to
--out/work, a report of each variant to --out/VARIANT, the table's figures to --out/report.json.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import importlib.util

from absl import flags

from mgen import cli
from mgen.errors import UserError

_CONFIG = flags.DEFINE_string("config", None, "Config with VARIANTS[:smoke].", required=True)
_DATASET = flags.DEFINE_string("dataset", None, "What it trains on.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the results.", required=True)


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, report

    path, _, size = _CONFIG.value.partition(":")
    names, out = _variants(path), clips.make_folder(_OUT.value)
    for name in names:
        config = ",".join(filter(None, (f"--config={path}:{name}", size)))
        workdir = f"--workdir={out / 'work' / name}"
        cli.stage("train", config, workdir, f"--config.data.dataset={_DATASET.value}")
        cli.stage("evaluate", workdir, f"--out={out / name}")
    report.ablation(out, names)


def _variants(path: str) -> tuple[str, ...]:
    spec = importlib.util.spec_from_file_location("ablation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "VARIANTS"):
        raise UserError(f"--config={path}: no VARIANTS, expected a config of configs/ablation")
    return module.VARIANTS


if __name__ == "__main__":
    cli.run(main)
