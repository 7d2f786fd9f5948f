"""Compile training steps for machines that are not here: does it fit, what bounds it?

mgen preflight --config=hierarchy/musiclm_430m:coarse --topology=v5e:2x4
mgen preflight --config=... --topology=v5p:8x8x16 --config.train.mesh=data=64,fsdp=16
mgen preflight --all --topology=v5e:2x4     # every full-size config, with its settings

GiB and milliseconds are of one device. Needs libtpu (`pip install 'mgen[preflight]'`), no TPU.
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
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape: v5e:2x4.", required=True)
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that shape.", 1)
_MESH = flags.DEFINE_string("mesh", "", "In place of the configs' own, such as fsdp=-1.")


def main(argv: list[str]) -> None:
    del argv
    from mgen import preflight
    from mgen.errors import UserError

    if bool(_ALL.value) == (_CONFIG.value is not None):
        raise UserError("expected either --config or --all")
    configs = preflight.full_size() if _ALL.value else {cli.config_name(): _CONFIG.value}
    fits = preflight.table(configs, _TOPOLOGY.value, _SLICES.value, _MESH.value)
    if not fits:
        raise UserError(f"does not fit {_TOPOLOGY.value}: see above what does")


if __name__ == "__main__":
    cli.run(main)
