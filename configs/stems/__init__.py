"""Models over the stems of a song: diffusion over waveforms, and a separator to compare with."""
