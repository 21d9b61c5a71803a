"""How the ranks end together when one of them fails: one says why, and none waits for another."""

import os
import socket
import time
from contextlib import suppress
from datetime import timedelta

import psutil
import torch
from torch.distributed import DistError
from torch.distributed.distributed_c10d import _get_default_store

ASKED = "fast_electra_failed"  # in the store of rank 0: how many ranks have asked whether to speak
LONGEST_WAIT = 6.0  # seconds; on a busy machine a rank takes a while to see that rank 0 hung up


def first_to_fail() -> bool:
    """Return whether this rank is the first that fails, and so says why all ranks end. Rank 0 keeps the count."""
    if not torch.distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"  # all ranks fail alike: one of each machine says so
    store = _get_default_store()
    store.set_timeout(timedelta(seconds=5))
    try:
        return bool(store.add(ASKED, 1) == 1)
    except RuntimeError:
        return os.environ["LOCAL_RANK"] == "0" or os.environ["RANK"] == "1"  # rank 0 was killed


def lost_rank(error: BaseException) -> str:
    """Return an error of gloo or NCCL in short words; empty if it is another error."""
    if not isinstance(error, DistError) and "/gloo/" not in str(error):
        return ""
    words = str(error).partition("\n")[0].rpartition("] ")[2]
    return f"another rank is gone or hangs ({words.partition('. ')[0]})"


def abandon_ranks() -> None:
    """Hang up on the other ranks. Rank 0 stays until they have asked its store whether to speak."""
    if not torch.distributed.is_initialized() or os.environ["RANK"] != "0":
        return
    store = int(os.environ["MASTER_PORT"])
    for connection in psutil.Process().net_connections("tcp"):
        if connection.raddr and store not in (connection.laddr.port, connection.raddr.port):
            with suppress(OSError), socket.socket(fileno=connection.fd) as end:
                end.shutdown(socket.SHUT_RDWR)
    until = time.monotonic() + LONGEST_WAIT
    with suppress(RuntimeError):
        while time.monotonic() < until and _get_default_store().add(ASKED, 0) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.1)
    time.sleep(0.2)  # the last one that asked reads its answer
