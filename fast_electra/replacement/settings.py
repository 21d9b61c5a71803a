"""Where replacements come from, as a config says it. The names are those of the tables that implement them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fast_electra.replacement.auxiliary import AUGMENTATIONS, Auxiliary, OutputAugmentation
from fast_electra.replacement.auxiliary_free import AUXILIARY_FREE
from fast_electra.replacement.distribution import GAMMA, Range
from fast_electra.settings import LocalPath, Settings, one_of


class AuxiliarySettings(Settings):
    """The frozen model that draws the replacements, and its precision."""

    run: LocalPath | None = None  # a run folder of objective `mlm`
    huggingface: LocalPath | None = None  # or the directory of a masked language model of Hugging Face
    accept_weak: bool = False  # whether one will do that predicts no better than the frequency of tokens
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # `auto` is 16 bit if the device computes in it
    cuda_graph: bool = True  # on a GPU, with Triton's attention, the model is replayed as CUDA graphs

    @model_validator(mode="after")
    def _one(self) -> "AuxiliarySettings":
        if self.run is not None and self.huggingface is not None:
            raise ValueError("run and huggingface name two auxiliary models: leave one of the two out")
        return self

    @property
    def named(self) -> bool:
        """Whether there is one."""
        return self.run is not None or self.huggingface is not None


class ReplacementSettings(Settings):
    """The distribution of the tokens at masked positions."""

    distribution: Annotated[str, one_of(["auxiliary", *AUXILIARY_FREE])] = "auxiliary"
    augmentation: Annotated[str, one_of(AUGMENTATIONS)] = "temperature"  # of the distribution `auxiliary`
    alpha: float = Field(default=0.35, gt=0.0, lt=1.0)  # of smoothed one-hot, D.1
    store: LocalPath | None = None  # a folder of corrupted data written by launch/preprocess.py

    @property
    def from_auxiliary(self) -> bool:
        """Whether an auxiliary model draws."""
        return self.distribution == "auxiliary"

    @property
    def range(self) -> Range:
        """Name and range of the strength."""
        return AUGMENTATIONS[self.augmentation].range if self.from_auxiliary else GAMMA

    @property
    def needs_frequency(self) -> bool:
        """Whether the term frequency of the corpus must be counted."""
        if self.from_auxiliary:
            return AUGMENTATIONS[self.augmentation].needs_frequency
        return AUXILIARY_FREE[self.distribution].frequency

    @property
    def needs_alpha(self) -> bool:
        """Whether the draws depend on `alpha`: smoothed one-hot has a part in them."""
        return not self.from_auxiliary and AUXILIARY_FREE[self.distribution].gamma != 1.0

    @property
    def has_curriculum(self) -> bool:
        """Whether the strength changes the draws; uniform, term frequency and smoothed one-hot ignore it."""
        return self.from_auxiliary or AUXILIARY_FREE[self.distribution].gamma is None

    @property
    def needs_our_encoder(self) -> bool:
        """Whether the augmentation drops inside the model, which a model of Hugging Face cannot do by key."""
        return self.from_auxiliary and AUGMENTATIONS[self.augmentation].dropout is not Auxiliary.dropout

    @property
    def is_linear(self) -> bool:
        """Whether one store can hold the draws at every strength; see `LinearDistribution`."""
        return not self.from_auxiliary or issubclass(AUGMENTATIONS[self.augmentation], OutputAugmentation)
