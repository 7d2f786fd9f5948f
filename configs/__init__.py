"""Experiments, `<family>/<experiment>.py`: `get_config(arg)`, its command and its result."""
