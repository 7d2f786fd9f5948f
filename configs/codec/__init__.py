"""Codecs: the published ones at full size, and tiny ones that train on a laptop."""
