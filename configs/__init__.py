"""Experiments: `<family>/<experiment>.py`, each with `get_config(arg)`, its command and its result."""
