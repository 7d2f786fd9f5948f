"""`mgen <command>`: the mains of `launch/` under one name, and the error contract they share.

Bad input ends every command the same way: one line on standard error that starts with `error:`,
exit code 1.
"""

import difflib
import errno
import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from mgen.errors import UserError

# In the environment before jax is imported, where libtpu only compiles and the host computes.
# Such programs cannot be read back from a compilation cache.
COMPILE_ONLY = dict(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    JAX_ENABLE_COMPILATION_CACHE="false",
)  # fmt: skip
# What a file system says to any program: full, not allowed.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
COMMANDS = {
    "prepare_data": "build a dataset (bundled scores, your MIDI, Slakh2100, folders of audio)",
    "inspect_data": "print a dataset's table, draw a page of it, write a few WAVs",
    "train": "train any family from a config; resumes where it stopped",
    "preflight": "compile a training step for TPUs that are not here: does it fit?",
    "scaling": "bounds of a step on 8 to 1024 TPUs, from compiled programs",
    "evaluate": "score a trained model on held-out data",
    "train_vocabulary": "train a SentencePiece vocabulary on a dataset's captions",
    "fit_codebook": "k-means on an encoder's features: codebooks for tokens and mel-RVQ targets",
    "measure_latents": "measure what a codec's latents of stems are normalised by",
    "tokenize": "turn a dataset into acoustic, semantic and joint tokens",
    "generate": "sample music from a trained language model",
    "separate": "take a mix apart into its stems",
    "arrange": "make stems that go with others",
    "export": "trained models as a TensorFlow SavedModel and as jax.export programs",
    "probe": "what encoders hear in held-out pieces, against chance and log-mel",
    "audit": "what a language model says by heart of its training data",
    "ablate": "train and score every variant of a config in configs/ablation, as one table",
    "score": "whether clips fit the prompts that they were made from",
    "score_stems": "how well stems are separated, filled in and made, on held-out pieces",
    "demo_stems": "diffusion over stems in small: makes, fills in, separates",
    "demo_hierarchy": "the MusicLM chain in small, from text to audio",
    "demo_tokens": "text-music embedding, semantic encoder and tokens, trained in minutes",
    "demo": "prepare, train, tokenize, train, generate: the whole path in minutes",
    "benchmark": "time this code against its peers, side by side",
}


def run(main: Callable[[Sequence[str]], object]) -> None:
    """Runs a launch script's `main(argv)` under absl with the error contract above."""
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(_help(main))
        return
    logging.set_verbosity(logging.WARNING)
    app.run(lambda argv: _guard(main, argv), flags_parser=lambda argv: _guard(_parse, argv))


def main() -> None:
    """Entry point of the console command `mgen`."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
        print("usage: mgen <command> [--flags]   (mgen <command> --help)\n\n" + "\n".join(lines))
        return
    if command not in COMMANDS:
        guess = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"; did you mean {guess[0]}?" if guess else f"; one of {', '.join(COMMANDS)}"
        _fail(f"unknown command {command!r}{hint}")
    sys.argv = [f"mgen {command}", *sys.argv[2:]]
    run(importlib.import_module(f"mgen.launch.{command}").main)


def stage(command: str, *args: object) -> None:
    """Runs `mgen <command>` in a process of its own, its output passed on; ends this one where that
    fails."""
    print(f"== mgen {' '.join([command, *map(str, args)])}", flush=True)
    code = subprocess.run([sys.executable, "-m", "mgen.cli", command, *map(str, args)]).returncode
    if code:
        sys.exit(code)


def define_config_flag() -> flags.FlagHolder:
    """Defines `--config=FILE[:arg]`; FILE may also name a shipped config (`codec/tiny_16khz`)."""
    return config_flags.DEFINE_config_file(
        "config", None, "Config file, or the name of a shipped one: codec/tiny_16khz[:smoke]."
    )


def config_name() -> str:
    """Of the config that `--config` gave: "codec/tiny_16khz:smoke"."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = "/".join(Path(path).with_suffix("").parts[-2:])
    return name + (f":{argument}" if argument else "")


def flag_values(main: Callable[[Sequence[str]], object]) -> dict[str, Any]:
    """The flags of a launch script by name, as they were given."""
    module = sys.modules[main.__module__]
    return {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(module)}


def resolve_config(value: str) -> str:
    """`configs/codec/tiny_16khz.py:smoke`, with or without folder and ending, to an existing file
    (argument kept)."""
    import mgen.configs

    shipped = Path(mgen.configs.__path__[0])
    name, _, argument = value.partition(":")
    bare = name.removeprefix("configs/").removesuffix(".py")
    for path in (Path(name), shipped / f"{bare}.py"):
        if path.is_file():
            return str(path) + (f":{argument}" if argument else "")
    known = sorted(
        str(path.relative_to(shipped).with_suffix(""))
        for path in shipped.glob("*/*.py")
        if path.name != "__init__.py"
    )
    guess = difflib.get_close_matches(bare, known, 3, 0.3) or known
    raise UserError(f"--config={name}: no such file; shipped configs: {', '.join(guess)}")


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's parser, with config names resolved and a config's own errors as `UserError`."""
    args = list(argv)
    for index, arg in enumerate(args):
        if arg.startswith("--config="):
            args[index] = f"--config={resolve_config(arg.removeprefix('--config='))}"
        elif arg == "--config" and index + 1 < len(args):
            args[index + 1] = resolve_config(args[index + 1])
    try:
        return flags.FLAGS(args)
    except flags.Error as error:
        raise UserError(f"{_one_line(error)} (see --help)") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises these for `--config.<unknown key>` and for values of the wrong type.
        raise UserError(f"--config: {_one_line(error)}") from error


def _guard(function: Callable[[Any], Any], argv: Any) -> Any:
    try:
        return function(argv)
    except UserError as error:
        _fail(_one_line(error))
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}")
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    return None


def _fail(message: str, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def _help(main: Callable[[Sequence[str]], object]) -> str:
    """Module docstring and the script's own flags (absl's --help shows those of the process's main
    module only)."""
    module = sys.modules[main.__module__]
    lines = [(module.__doc__ or "").strip(), "", "flags:"]
    for flag in sorted(flags.FLAGS.get_key_flags_for_module(module), key=lambda f: f.name):
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
