"""Operations that XLA does not do well, each in a folder: `reference.py` says what it is,
`pallas_tpu.py` does it fast, the folder's own function chooses."""
