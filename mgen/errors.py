"""Errors that are the user's to mend: printed as one line, exit code 1, never a traceback."""


class UserError(Exception):
    """Bad input from outside (a path, a file, a flag, a config key).

    The message is one line that names the file or field, what was found and what was expected.
    `mgen.cli` prints it.
    """
