"""Time this code against its peers: same machine, same run, same threads, the peer at its best.

  mgen benchmark --suite=codec,lm_decode,inputs --json=out/benchmark.json
  mgen benchmark --suite=lm_decode,lm_generate --smoke   # does it run?

A ratio above 1 means that this code is better. Suites live in launch/suites/.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

import importlib
import json
import pkgutil

from absl import flags
from rich.console import Console
from rich.table import Table

from mgen import cli
from mgen.errors import UserError

_SUITE = flags.DEFINE_list("suite", None, "Suites to run; all of them by default.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Smallest sizes, for suites that have them.")
_JSON = flags.DEFINE_string("json", "", "Also write the rows to this file.")


def main(argv: list[str]) -> None:
    del argv
    import mgen.launch.suites as suites

    known = [module.name for module in pkgutil.iter_modules(suites.__path__)]
    rows = []
    for name in _SUITE.value or known:
        if name not in known:
            raise UserError(f"--suite={name}: unknown, expected some of {', '.join(known)}")
        suite = importlib.import_module(f"mgen.launch.suites.{name}")
        rows += suite.run(suite.SMOKE) if _SMOKE.value and hasattr(suite, "SMOKE") else suite.run()
    table = Table(
        "suite", "case", "unit", "ours", "peer", "ratio", title="ratio > 1: ours is better"
    )
    for row in rows:
        figures = [f"{row[key]:.3g}" for key in ("ours", "peer", "ratio")]
        table.add_row(row["suite"], row["case"], row["unit"], *figures)
    Console(width=120).print(table)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    cli.run(main)
