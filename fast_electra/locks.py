"""One writer of an output at a time. The kernel releases its lock when the writer dies, however it dies."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fast_electra.settings import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems that cannot lock a file


@contextmanager
def only_writer(lock: Path, output: Path, remedy: str) -> Iterator[None]:
    """Hold the lock of an output, a file in a folder that exists, which names the process that holds it.

    A file system that cannot lock files is used without a lock.

    Raises:
        UserError: another process holds the lock. The message names it and ends with `remedy`.
        OSError: the file cannot be written.
    """
    from filelock import FileLock, Timeout  # here, because the command line's --help does without it

    held = FileLock(lock, timeout=0, fallback_to_soft=False)  # a soft lock would outlive its holder
    try:
        held.acquire()
        lock.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        holder = ""
        with suppress(OSError):
            holder = lock.read_text(encoding="utf-8", errors="replace")
        written = f"{output} is being written by another process: {remedy}"
        raise UserError(f"{written} (it is {holder})" if holder else written) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # before the release, because filelock refuses a lock whose file is gone
        held.release()
