"""A separator trained by regression on the data and with the budget of configs/stems/msdm_slakh.py.

  mgen train --config=stems/separator_baseline --workdir=out/separator \\
      --config.data.dataset=out/data

106,719,616 parameters: 64 bands, 12 blocks of 384 along time and 12 along the bands (BS-RoFormer,
Lu et al. 2024). Loss on the waveform and on spectra of five window lengths.
`--config.data.remix=0.5` makes half of the mixes of stems of different tracks, as separators are
often trained.
Hardware: one GPU of 80 GB.
Expected: no published figure of this network on Slakh2100; of Demucs, 16.1 dB of SI-SDRi on average
(Mariani et al. 2024). `:smoke` takes seconds on a CPU.
"""

import ml_collections

from mgen.configs import stems_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return stems_base.slakh(arg, kind="separator")
