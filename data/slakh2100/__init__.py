"""Slakh2100 (Manilow et al. 2019): sampled instruments, stems and aligned MIDI, CC BY 4.0.

Reads the published folders, FLAC or WAV, split or flat; nothing is downloaded.
"""
