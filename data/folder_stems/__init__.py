"""Your own multitrack recordings: a folder a track, a file a stem, captions and MIDI if there are
any.
"""
