"""Your own recordings: any audio files under a folder, one stem named "mix", captions if there are
any.
"""
