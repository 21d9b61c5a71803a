"""What the config of every training run holds, whatever it trains; see `config` for pre-training."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from fast_electra.deepspeed_config import Machine
from fast_electra.settings import LocalPath, Settings, UserError

SECTION = "fast_electra"  # of a config: our part


class CheckpointSettings(Settings):
    """When checkpoints are written, and how many are kept. One is always written at the end of a run."""

    every: int = Field(default=5000, ge=1)  # updates
    keep: int = Field(default=2, ge=1)


class EvaluationSettings(Settings):
    """When a run is evaluated, and on how many held-out sequences. It is always evaluated at its end."""

    every: int = Field(default=5000, ge=1)  # updates
    sequences: int = Field(default=2048, ge=1)


class RunSettings(Settings):
    """What the loop, the checkpoints and the launcher read."""

    run: LocalPath
    seed: int = Field(default=0, ge=0, lt=2**62)
    updates: int = Field(ge=1, le=1_000_000_000)
    log_every: int = Field(default=20, ge=1)
    wait_minutes: float = Field(default=15, ge=0.1, le=1440)  # that a rank waits for another while they train
    apex: Literal["auto"] | bool = Field(default="auto", description="true, false or auto")  # NVIDIA's norms and Adam
    checkpoint: CheckpointSettings = CheckpointSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def refuse_to_write_into(self, read: dict[str, str | None]) -> None:
        """Raise a ValueError if the run's folder is one that it reads; `read` has those by their keys."""
        for key, folder in read.items():
            if self.run and folder is not None and os.path.realpath(folder) == os.path.realpath(self.run):
                raise ValueError(f"run and {key} are both {folder}: name another folder for the run to write into")


@dataclass(frozen=True)
class ResolvedConfig:
    """A config that was checked and completed for one machine."""

    run: RunSettings  # our part
    deepspeed: dict[str, Any]  # DeepSpeed's part: plain JSON, without `auto`
    machine: Machine  # the one that it is for

    @property
    def sequences(self) -> int:
        """Number of sequences of an update, over all processes."""
        return int(self.deepspeed["train_batch_size"])

    @property
    def dtype(self) -> str:
        """Precision of the model that is trained: fp32, bf16 or fp16."""
        return next((name for name in ("bf16", "fp16") if self.deepspeed.get(name, {}).get("enabled")), "fp32")

    @property
    def apex(self) -> bool:
        """Whether NVIDIA's apex is used. `auto` means no until it has been measured faster on a GPU."""
        return self.run.apex is True

    @property
    def fused_adam(self) -> bool:
        """Whether DeepSpeed's fused Adam is wanted, which is an operator that must be built."""
        optimizer = self.deepspeed["optimizer"]
        return not self.apex and optimizer["type"] != "Adamax" and not optimizer["params"].get("torch_adam", False)

    def check_apex(self, where: str) -> None:
        """Refuse NVIDIA's apex beside another optimizer; `where` is the config's file."""
        optimizer = self.deepspeed["optimizer"]
        asks = {"params.torch_adam": optimizer["params"].get("torch_adam"), "type": optimizer["type"] == "Adamax"}
        for key in (key for key, asked in asks.items() if asked and self.apex):
            raise UserError(
                f"{where}: {SECTION}.apex brings its own Adam, and optimizer.{key} asks for torch's: leave one of the "
                "two out"
            )

    def u(self, update: int, epoch: int) -> float:
        """Return how far the run is at an update, 1 ... updates, in (0, 1]; an epoch has `epoch` sequences."""
        return update / self.run.updates

    def to_json(self) -> dict[str, Any]:
        """Return both parts."""
        return {SECTION: self.run.model_dump(), "deepspeed": self.deepspeed}
