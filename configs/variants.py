"""What may follow a config's name: `:smoke` (seconds on a CPU) or `:runlocal` (full size, small
batches, a few steps: does the real thing run on this machine?)."""

import ml_collections

from mgen.errors import UserError

KNOWN = ("", "smoke", "runlocal")


def check(arg: str) -> str:
    """`arg`; `UserError` where it is no variant."""
    if arg not in KNOWN:
        raise UserError(f"config variant {arg!r}: expected one of {', '.join(KNOWN[1:])}, or none")
    return arg


def split(arg: str, choices: tuple[str, ...]) -> tuple[str, str]:
    """Choice and variant of an argument such as "coarse", "smoke" or "coarse,smoke"; the first
    choice by default."""
    choice, variant = choices[0], ""
    for word in filter(None, arg.split(",")):
        if word in choices:
            choice = word
        elif word in KNOWN:
            variant = word
        else:
            known = ", ".join((*choices, *KNOWN[1:]))
            raise UserError(f"config variant {word!r}: expected some of {known}")
    return choice, variant


def finish(config: ml_collections.ConfigDict, arg: str) -> ml_collections.ConfigDict:
    """Applies `:runlocal` (`:smoke` is the config's own) and locks."""
    if check(arg) == "runlocal":
        config.data.batch_size = 2
        config.optim.accumulate = 1
        config.train.update(steps=20, log_every=1, eval_every=0, summary_every=0, save_every=20)
    return config.lock()
