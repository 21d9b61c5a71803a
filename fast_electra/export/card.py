"""README.md of an export: the model card of the Hugging Face Hub, filled from the run."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ConfigDict, Field

import fast_electra
from fast_electra.corpus.corpus import CorpusSettings
from fast_electra.corpus.shards import MANIFEST, Manifest
from fast_electra.curriculum import CurriculumSettings
from fast_electra.files import read_json, seal
from fast_electra.replacement.settings import ReplacementSettings
from fast_electra.settings import Settings

PIPELINES = {"rtd": "feature-extraction", "mlm": "fill-mask", "classifier": "text-classification"}


class RunSection(Settings):
    """What an export reads of the section `fast_electra`, which may hold more."""

    model_config = ConfigDict(extra="ignore")

    objective: str | None = None
    seed: int | None = None
    updates: int | None = None
    corpus: CorpusSettings | None = None  # in fine-tuning there is none, and the next three say what it would
    tokenizer: str | None = None
    pretrained: str | None = None  # run or model folder
    sequence_length: int = Field(default=512, ge=8, le=32_768)
    replacement: ReplacementSettings | None = None
    curriculum: CurriculumSettings | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest sequence in training; the paper's 512 if it is not known."""
        return self.corpus.sequence_length if self.corpus else self.sequence_length


class RunRecord(Settings):
    """What an export reads of a run's config.json. All of it is missing where a model folder stands alone."""

    model_config = ConfigDict(extra="ignore")

    fast_electra: RunSection = RunSection()
    corpus_hash: str | None = None
    auxiliary_hash: str | None = None
    model_hash: Any = None  # of what was fine-tuned
    heldout_mlm_accuracy: float | None = None


def model_card(config: dict[str, Any], description: dict[str, Any], record: RunRecord, **facts: Any) -> str:
    """Return the card in Markdown.

    Args:
        config: what the export's config.json says.
        description: what the model's model.json says.
        record: of the model's run.
        facts: `name` of the export, and `licence` of the corpus.
    """
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, **blocks)
    environment.filters["cell"] = _cell
    run = record.fast_electra
    rows = {
        "objective": run.objective,
        "task": description.get("task"),
        "fine-tuned from": record.model_hash,
        "data": _data(record),
        "licence of the data": facts["licence"],
        "updates": run.updates,
        "longest sequence": f"{run.length} tokens" if run.updates else None,
        "seed": run.seed,
        "curriculum": _curriculum(run),
        "auxiliary model": record.auxiliary_hash,
        "held-out accuracy of the auxiliary model": record.heldout_mlm_accuracy,
        "labels": ", ".join(description["labels"]) or None,
        "hash of the model": description["hash"],
        "hash of the tokenizer": description["tokenizer"],
    }
    page = environment.get_template("README.md.j2").render(
        config=config,
        kind=description["kind"],
        labels=description["labels"],
        pipeline=PIPELINES[description["kind"]],
        rows={name: value for name, value in rows.items() if value is not None},
        figures={name: value for name, value in description["evaluation"].items() if type(value) in (int, float)},
        version=fast_electra.__version__,
        **facts,
    )
    return page.encode("utf-8", errors="replace").decode()  # a file's name may hold one half of a surrogate pair


def _data(record: RunRecord) -> str | None:
    """Return what the training shards hold, if they are still there, and else their hash."""
    corpus = record.fast_electra.corpus
    if corpus is None or record.corpus_hash is None:
        return None
    try:
        content = read_json(Path(corpus.shards) / MANIFEST)
        manifest = Manifest.model_validate_json(json.dumps(content))
        if seal(content) != record.corpus_hash:
            raise ValueError("another corpus is there now")
    except (OSError, ValueError, RecursionError):
        return f"shards with the hash {record.corpus_hash}"
    files = ", ".join(Path(file.path).name for file in manifest.inputs[:3]) + (", ..." if manifest.inputs[3:] else "")
    train = manifest.splits["train"]
    documents, tokens = sum(shard.documents for shard in train), sum(shard.tokens for shard in train)
    return f"{documents:,} documents, {tokens:,} tokens, from {files}"


def _curriculum(run: RunSection) -> str | None:
    replacement, curriculum = run.replacement, run.curriculum
    if run.objective != "rtd" or not replacement or not curriculum or not replacement.has_curriculum:
        return None
    return f"{replacement.range.parameter} from {curriculum.initial:g}, {curriculum.schedule}, rate {curriculum.rate:g}"


def _cell(value: Any) -> str:
    """Return a value as a cell of a table: one line, in which nothing is Markdown."""
    text = f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>|#" else character for character in text)
