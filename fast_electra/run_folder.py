"""A trained model, and what the config.json of its run says: which files it was made from, wherever they lie now."""

import os
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import ConfigDict

from fast_electra.corpus.corpus import CorpusSettings
from fast_electra.corpus.tokenizer import Tokenizer, open_tokenizer
from fast_electra.corruption import CorruptionSettings
from fast_electra.curriculum import CurriculumSettings
from fast_electra.files import read_settings
from fast_electra.model.files import DESCRIPTION, load_model
from fast_electra.replacement.settings import AuxiliarySettings, ReplacementSettings
from fast_electra.settings import LocalPath, Settings, UserError

CONFIG = "config.json"
_REMEDY = "restore it, or copy the model folder to another place and name its tokenizer"


class ExistingModel(Settings):
    """What is read of the section `model`."""

    model_config = ConfigDict(extra="ignore")

    huggingface: LocalPath | None = None  # None for a model of our own


class RunRecord(Settings):
    """What is read of the section `fast_electra`, of pre-training or of fine-tuning. It has other keys too."""

    model_config = ConfigDict(extra="ignore")

    run: LocalPath
    updates: int
    seed: int = 0
    objective: str = "fine-tuning"
    recipe: str | None = None
    model: ExistingModel = ExistingModel()
    task: str | None = None
    corpus: CorpusSettings | None = None
    sequence_length: int | None = None  # in fine-tuning
    corruption: CorruptionSettings = CorruptionSettings()
    auxiliary: AuxiliarySettings | None = None
    replacement: ReplacementSettings = ReplacementSettings()
    curriculum: CurriculumSettings | None = None
    pretrained: LocalPath | None = None  # what was fine-tuned
    tokenizer: LocalPath | None = None  # in fine-tuning


class RunFacts(Settings):
    """What is read of a config.json besides DeepSpeed's part."""

    model_config = ConfigDict(extra="ignore")

    fast_electra: RunRecord
    corpus_hash: str | None = None  # of the shards that the run began with; None in fine-tuning
    existing_hash: str | None = None  # of the model of Hugging Face that the run began with
    auxiliary_hash: str | None = None  # None if no auxiliary model drew the replacements
    heldout_mlm_accuracy: float | None = None  # of the auxiliary
    model_hash: Any = None  # of our model that was fine-tuned, or of the files of another


class RunFolder(NamedTuple):
    """A run folder, and what its config.json says."""

    folder: Path
    record: RunRecord
    facts: RunFacts

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the config.json of a run folder.

        Raises:
            UserError: it is missing, altered, or that of something else.
        """
        path = folder / CONFIG
        facts = read_settings(path, RunFacts, f"{folder} is no run folder: {path} is missing", _REMEDY)
        return cls(folder, facts.fast_electra, facts)

    @property
    def tokenizer(self) -> Path | None:
        """Folder of the run's tokenizer, as `found` finds it; None if the config names none."""
        named = self.record.corpus.tokenizer if self.record.corpus else self.record.tokenizer
        return None if named is None else self.found(named)

    @property
    def sequence_length(self) -> int | None:
        """Positions of the longest sequence in training, [CLS] and [SEP] included."""
        return self.record.corpus.sequence_length if self.record.corpus else self.record.sequence_length

    def found(self, named: str) -> Path:
        """Return where a path of the config lies now: where it lay beside the run, or else where the config says.

        A relative path counts from where the run was started, and whole experiments are moved.
        """
        beside = Path(os.path.realpath(self.folder.resolve() / os.path.relpath(named, self.record.run)))
        return _from_here(beside) if beside.exists() else Path(named)


class Trained(NamedTuple):
    """A trained model, and what is needed to use it."""

    model: Any  # in fp32 on the CPU
    description: dict[str, Any]  # as `model.files.describe` returns it
    tokenizer: Tokenizer
    run: RunFolder | None  # None if the model is in no run folder
    sequence_length: int | None  # as in `RunFolder`; models of older versions know it only from their run


def open_trained(
    folder: Path, kinds: str | tuple[str, ...], remedy: str, tokenizer: str | Path | None, flag: str
) -> Trained:
    """Load a model folder, with its tokenizer and what its run says.

    Args:
        folder: the model folder.
        kinds: keys of `model.files.KINDS` that will do.
        remedy: ends the message about a model that is missing or damaged.
        tokenizer: folder of the model's tokenizer; by default the one that its run names.
        flag: how a user names that folder, for messages.

    Raises:
        UserError: model, run or tokenizer is missing or damaged, or the tokenizer is another than the model's.
    """
    model, description = load_model(folder, kinds, remedy)
    run, name_it = run_above(folder), f"name its folder with {flag}"
    place = tokenizer or (run and run.tokenizer)
    if place is None:
        raise UserError(f"{folder} is not in a run folder, whose config.json would name its tokenizer: {name_it}")
    if not Path(place).is_dir():
        raise UserError(f"there is no folder {place} with the tokenizer of {folder}: {name_it}")
    loaded = open_tokenizer(place)
    if loaded.hash != description["tokenizer"]:
        hashes = f"sha256 {loaded.hash[:12]}, and the model's has {description['tokenizer'][:12] or 'none'}"
        raise UserError(f"{place} is not the tokenizer of {folder} ({hashes}): {name_it}")
    if (size := description["encoder"]["vocabulary_size"]) != loaded.vocabulary_size:
        raise UserError(f"{folder} has {size:,} tokens and its tokenizer {loaded.vocabulary_size:,}: train it again")
    length = description["sequence_length"] or (run and run.sequence_length)
    return Trained(model, description, loaded, run, length)


def model_in(folder: Path) -> Path:
    """Return the folder itself if it is a model's, and else its subfolder `model`, as a run has it."""
    return folder if (folder / DESCRIPTION).is_file() else folder / "model"


def run_above(folder: Path) -> RunFolder | None:
    """Return the run that a part of it belongs to, such as its model; None if no run folder is above."""
    above = folder.resolve().parent
    if above.name == "auxiliary" and not (above / CONFIG).is_file():  # a part of joint training
        above = above.parent
    return RunFolder.open(_from_here(above)) if (above / CONFIG).is_file() else None


def _from_here(path: Path) -> Path:
    """Return a path, relative if it is below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
