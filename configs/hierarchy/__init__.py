"""Token language models: MusicLM's three stages, MusicGen at its three sizes, and tiny ones."""
