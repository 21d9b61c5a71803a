"""An existing encoder as the main model, as a config says it."""

from typing import Literal

from pydantic import Field

from fast_electra.settings import LocalPath, Settings


class HuggingFaceSettings(Settings):
    """A directory of Hugging Face to continue from, or a file like its config.json to begin anew."""

    huggingface: LocalPath
    initialization: Literal["pretrained", "random"] = "pretrained"  # random: the directory's architecture, new weights
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)  # None: the rates of the model's own config
    activation_checkpointing: bool = False
