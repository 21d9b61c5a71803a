"""What ends a run early: a signal, or a launcher that is gone. And the stacks of a rank that waits too long.

While a rank trains, a signal only leaves a note. After each update all ranks compare their notes (`training/loop.py`).
Then they save and leave together, and the same command resumes the run. At any other time a signal ends its rank at
once, because there is nothing to save.
"""

import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command resumes
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LAUNCHER_GONE = 0xFF  # beside the numbers of signals
GRACE = 2.0  # seconds in which the main thread may end by itself
POLL = 1.0  # seconds between two looks at the launcher


class Interrupted(KeyboardInterrupt):
    """A signal came, or the launcher is gone. `agreed` is true if all ranks saved and leave together."""

    def __init__(self, reason: str, agreed: bool = False) -> None:
        super().__init__(reason)
        self.agreed = agreed


class Watch:
    """This process's notes about signals, its launcher and its own progress. There is one: `watch`."""

    def __init__(self) -> None:
        self.note = 0  # number of the first signal that came, or LAUNCHER_GONE
        self._training = False
        self._ancestors: tuple[int, ...] = ()
        self._progress, self._limit, self._stacks = 0.0, 0.0, Path()

    def start(self) -> None:
        """Handle signals from now on, and watch the launcher if there is one. Call it once, in the main thread."""
        # The kernel's side of a signal writes into the pipe even while the main thread is inside a call into C++.
        woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, self._handle)
        self._ancestors = _launcher() if "RANK" in os.environ else ()
        threading.Thread(target=self._run, args=(woken,), name="signals", daemon=True).start()

    def stop(self) -> None:
        """Ignore signals from now on, because this process is about to end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def trains(self, stacks: Path, limit: float) -> None:
        """Only note signals from now on, because the ranks are going to agree.

        Where `progressed` is not called for most of `limit` seconds, the stacks of all threads go into a file. With a
        limit of 0 this never happens.
        """
        self._training = True  # before the look at the note, so that no signal falls between
        self._stacks, self._limit, self._progress = stacks, limit, time.monotonic()
        if self.note:
            raise Interrupted(reason(self.note))

    def progressed(self) -> None:
        """Say that this rank did an update."""
        self._progress = time.monotonic()

    def _handle(self, number: int, frame: object) -> None:
        self.note = self.note or number
        if not self._training:
            raise Interrupted(reason(number))

    def _run(self, woken: socket.socket) -> None:
        while True:
            numbers = [number for number in woken.recv(64) if number in SIGNALS] if _readable(woken) else []
            if self._ancestors and _launcher() != self._ancestors:
                numbers.append(LAUNCHER_GONE)
                self._ancestors = ()
            for number in numbers:
                self.note = self.note or number
                # Where another rank of this machine is gone, the launcher ends all, and no agreement comes.
                if not self._training or _sibling_is_gone():
                    time.sleep(GRACE)
                    if not self._training and os.environ.get("LOCAL_RANK", "0") == "0":
                        sys.stderr.write(f"interrupted: {reason(number)}; the same command resumes\n")
                    os._exit(EXIT_CODE)
            if self._limit and time.monotonic() - self._progress > 0.8 * self._limit:
                self._limit = 0.0
                with suppress(OSError), self._stacks.open("w") as file:
                    faulthandler.dump_traceback(file)


watch = Watch()


def reason(note: int) -> str:
    """Return a note in words."""
    return "the launcher is gone" if note == LAUNCHER_GONE else signal.Signals(note).name


def _readable(woken: socket.socket) -> bool:
    return bool(select.select([woken], [], [], POLL)[0])


def _launcher() -> tuple[int, ...]:
    """Return the process that started this one, and for DeepSpeed's launch.py also the one that started that."""
    parent = os.getppid()
    if "CROSS_RANK" not in os.environ:  # only launch.py sets it
        return (parent,)
    try:
        return parent, psutil.Process(parent).ppid()
    except psutil.Error:
        return (parent,)


def _sibling_is_gone() -> bool:
    local = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))  # deepspeed's name, torchrun's
    try:
        return local > 1 and len(psutil.Process(os.getppid()).children()) < local
    except psutil.Error:
        return False
