"""Command line mains: `python launch/<name>.py` in a checkout, `mgen <name>` when installed."""
