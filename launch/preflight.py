"""Compile for machines that are not here: does it fit, what bounds it?

mgen preflight --config=hierarchy/musiclm_430m:coarse --topology=v5e:2x4
mgen preflight --config=... --topology=v5e:2x4 --program=sample    # generation or separation
mgen preflight --all --topology=v5e:2x4     # every full-size config, with its settings
mgen preflight --pods                       # the machines that BENCHMARKS.md has, for its table

GiB and milliseconds are of one device. --quick, which --all has by itself, asks the compiler for
less effort: a third of the time, about the same memory, slower steps. --out keeps what is compiled.
Needs the extra `preflight` and no TPU; for --topology=h100:1x8 (hosts, GPUs) `preflight-gpu`.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

os.environ.update(cli.COMPILE_ONLY)

_CONFIG = cli.define_config_flag()
_ALL = flags.DEFINE_bool("all", False, "Every full-size config in place of one.")
_PODS = flags.DEFINE_bool("pods", False, "Full-size configs, each for its own machine.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Chip and shape: v5e:2x4.")
_PROGRAM = flags.DEFINE_enum("program", "train", ["train", "sample"], "What to compile.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that shape.", 1)
_MESH = flags.DEFINE_string("mesh", "", "In place of the configs' own, such as fsdp=-1.")
_OUT = flags.DEFINE_string("out", "out/preflight", "Folder of compiled programs.")
_QUICK = flags.DEFINE_bool("quick", None, "Less effort of the compiler; by default with --all.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, preflight
    from mgen.errors import UserError

    if [bool(_ALL.value), bool(_PODS.value), _CONFIG.value is not None].count(True) != 1:
        raise UserError("expected one of --config, --all and --pods")
    if bool(_PODS.value) == bool(_TOPOLOGY.value):
        raise UserError("expected --topology, but with --pods")
    if _PODS.value:
        programs = preflight.pods()
    else:
        configs = preflight.full_size() if _ALL.value else {cli.config_name(): _CONFIG.value}
        machine = _TOPOLOGY.value, _SLICES.value, _PROGRAM.value
        programs = [preflight.Program(*each, *machine) for each in configs.items()]
    for program in programs if _MESH.value else ():
        program.config.train.mesh = _MESH.value
    if _ALL.value if _QUICK.value is None else _QUICK.value:
        preflight.quickly()
    if not preflight.table(programs, clips.make_folder(_OUT.value)):
        raise UserError("something does not fit: see above what, and what does in its place")


if __name__ == "__main__":
    cli.run(main)
