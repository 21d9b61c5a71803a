"""Files that run code when they are unpickled: they make a file, which shows that it happened."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

KINDS = ("alone", "inside", "legacy", "bare", "object", "old_protocol", "numpy")


class Payload:
    def __init__(self, shows: Path) -> None:
        self.shows = shows

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.shows),)


class Late(Payload):
    """Runs in a later step of unpickling: as the state of an object that is allowed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"state": Payload(self.shows)}


def write(path: Path, shows: Path, kind: str) -> None:
    """Write a file whose unpickling makes the folder `shows`."""
    payload = Payload(shows)
    if kind == "alone":
        torch.save(payload, path)
    elif kind == "inside":
        torch.save({"module": {"weight": torch.ones(3)}, "update": payload, "optimizer_state_dict": {}}, path)
    elif kind == "legacy":
        torch.save({"module": payload}, path, _use_new_zipfile_serialization=False)
    elif kind == "bare":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "object":
        torch.save({"module": Late(shows)}, path)
    elif kind == "old_protocol":
        torch.save({"module": payload}, path, pickle_protocol=0)
    else:
        with path.open("wb") as file:
            np.save(file, np.array([payload], dtype=object), allow_pickle=True)  # writing runs nothing
