"""The exceptions that a user meets: a sentence that says what is wrong, where, and what to do."""


class InputError(Exception):
    """Bad input or a missing prerequisite. The command line prints its text and ends with `exit_code`."""

    exit_code = 1


class ParameterError(InputError):
    """A wrong key or value in params.yaml or on the command line."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """Asked to end by SIGTERM, as by Ctrl-C."""
