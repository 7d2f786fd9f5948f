"""Weak scaling of a language model and of a diffusion Transformer, from programs compiled for 8 to
1024 TPUs: bounds of a step and of MFU, bytes between devices; a table and a picture.

mgen scaling --out=out/scaling        # what `make scaling` runs
"""

import os
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # launch/tokenize.py must not shadow the standard library's tokenize

from absl import flags

from mgen import cli

os.environ.update(cli.COMPILE_ONLY)

_OUT = flags.DEFINE_string("out", "out/scaling", "Folder of the table and the picture.")
_TOPOLOGIES = flags.DEFINE_list(
    "topologies", "v5p:2x2x2,v5p:4x4x4,v5p:8x8x8,v5p:8x8x16", "Growing ones."
)


def main(argv: list[str]) -> None:
    del argv
    from mgen import clips, preflight

    preflight.quickly()
    every = preflight.full_size()
    models = {"hierarchy/musicgen_large": 4, "stems/latent_stems_1b": 4}
    configs = {name: (every[name], each) for name, each in models.items()}
    preflight.scaling(configs, _TOPOLOGIES.value, clips.make_folder(_OUT.value))


if __name__ == "__main__":
    cli.run(main)
