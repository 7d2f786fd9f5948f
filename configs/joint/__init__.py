"""Joint embeddings of music and text: published ones at their size, tiny ones for a laptop."""
