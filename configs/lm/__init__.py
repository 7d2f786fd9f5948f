"""Token language models: MusicGen at its three sizes, and a tiny one for a laptop."""
