"""The errors that users see, each with its exit code. A message is one line: key, value, rule, fix."""


class LrsweepError(Exception):
    """An error with an exit code. The command line prints its message as one line, without a traceback.

    Attributes:
        exit_code: The exit code of the process.
    """

    exit_code = 1


class InputError(LrsweepError):
    """Invalid input: a config, a data file, a model folder or a command. Nothing has been created."""

    exit_code = 2


class NotFoundError(InputError):
    """A file or folder that is named does not exist. It may exist where the sweep will run."""


class NoWinnerError(LrsweepError):
    """Every trial failed or diverged."""

    exit_code = 3


class WorkerError(LrsweepError):
    """Workers keep dying; the same command resumes."""

    exit_code = 4


class StorageError(LrsweepError):
    """A disk, a database or a lock failed; the same command resumes."""

    exit_code = 4


class LimitError(LrsweepError):
    """The system allows no more processes, files or memory; the same command resumes."""

    exit_code = 4


class UnexpectedError(LrsweepError):
    """An error that no code expected: a fault of lrsweep or of a library. `files/logs.py` makes it.

    Args:
        line: What was being done, the error's first line, and where its traceback is.
        traceback: The traceback, for LRSWEEP_DEBUG=1.
    """

    def __init__(self, line: str, traceback: str) -> None:
        super().__init__(line)
        self.traceback = traceback
