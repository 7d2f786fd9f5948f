"""Scores that music21 ships (or a folder of MIDI files) as note tables with metre, key, chords,
beats and licence.

Configs: `quartets` (four parts by register), `band` (bass, drums, guitar, piano arranged from the
tune books), `tunes` (single lines). Parsing happens once, here; audio is rendered by the loader.
"""
