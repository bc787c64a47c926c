"""The faults a user can meet, each with its exit code. Their text is one line: key, value, rule, fix."""


class LrsweepError(Exception):
    """A fault with an exit code; its message is shown as one line, without a traceback."""

    exit_code = 1


class InputError(LrsweepError):
    """Bad input: a config, a data file, a model folder, a command. Nothing has been created."""

    exit_code = 2


class NoWinnerError(LrsweepError):
    """Every trial failed or diverged."""

    exit_code = 3


class WorkerError(LrsweepError):
    """No worker stays alive; the same command resumes."""

    exit_code = 4


class StorageError(LrsweepError):
    """A disk, database or lock fault; the same command resumes."""

    exit_code = 4
