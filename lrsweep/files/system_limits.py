"""Which errors say that the system allows no more processes, files or memory: not faults to report."""

import errno

_DISK = "the disk is full, or a limit forbids larger files (`ulimit -f`)"
_BY_NUMBER = {
    errno.EAGAIN: "no further process or thread may be started here (`ulimit -u` shows the limit)",
    errno.EMFILE: "this process has too many files open (`ulimit -n` shows the limit)",
    errno.ENFILE: "this machine has too many files open",
    errno.ENOMEM: "the memory is full, or limited (`ulimit -v` shows the limit)",
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
    errno.EFBIG: _DISK,
    errno.EROFS: "the file system is read-only",
}


def limit_reached(fault: BaseException) -> str | None:
    """What the system does not allow; None for any other error.

    Args:
        fault: The error.
    """
    if isinstance(fault, MemoryError):
        return _BY_NUMBER[errno.ENOMEM]
    if isinstance(fault, RuntimeError) and str(fault).startswith("can't start new thread"):
        return _BY_NUMBER[errno.EAGAIN]
    if isinstance(fault, FileNotFoundError) and "No usable temporary directory" in str(fault):
        return f"no temporary folder can be written to: {_DISK}"
    # Nor can a full pipe be written to at once, with the same number.
    if isinstance(fault, OSError) and "without blocking" not in str(fault):
        return _BY_NUMBER.get(fault.errno or 0)
    return None
