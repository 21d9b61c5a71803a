"""How DeepSpeed reads and writes a checkpoint's files: without running code, synced, and no rank fails alone.

Checkpoints are shared between people, and DeepSpeed's own reader runs whatever code a file holds.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from fast_electra.files import sync
from fast_electra.settings import UserError, first_line

CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]  # in files of ZeRO, beside tensors


class CheckpointFiles(TorchCheckpointEngine):  # type: ignore[misc]
    """Reads and writes the files of DeepSpeed's checkpoints. No code in a file is run, and what is written is synced.

    Attributes:
        failure: why the last write of this rank failed, or "". An exception would leave the other ranks waiting.
    """

    failure = ""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one file and wait until it is on the disk."""
        try:
            with Path(path).open("wb") as file:
                torch.save(state_dict, file)
            sync(Path(path))
        except (OSError, RuntimeError) as error:  # torch's own error hides what the disk said
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            self.failure = f"{path} cannot be written ({first_line(cause)})"

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file."""
        return read_checkpoint_file(path, map_location)


def read_checkpoint_file(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """Return what a checkpoint's file holds: tensors, plain values and CLASSES. No code in it is run.

    Raises:
        UserError: the file holds something else, or is damaged.
    """
    try:
        with torch.serialization.safe_globals(CLASSES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions of pickle
            return torch.load(path, map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # of many kinds, because any bytes may be in the file
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's message recommends to run the code
            needless = f"{foreign[1]}, which no checkpoint needs" if foreign else "more than tensors and plain values"
            reason = f"it is damaged, or holds {needless}"
        raise UserError(f"{path} cannot be loaded ({reason})") from None
