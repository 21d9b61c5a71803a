"""Settings of a main model of Hugging Face: the section `fast_electra.model` with the key `huggingface`."""

from typing import Literal

from pydantic import Field

from fast_electra.settings import LocalPath, Settings


class HuggingFaceSettings(Settings):
    """An encoder of transformers under a head for replaced tokens."""

    huggingface: LocalPath  # a directory, whose training goes on; or a file like config.json: that model from scratch
    initialization: Literal["pretrained", "random"] = "pretrained"  # random: a directory's model from scratch too
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)  # all its rates; None: those of its config
    activation_checkpointing: bool = False
