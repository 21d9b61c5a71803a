"""README.md of an export: the model card of the Hugging Face Hub, filled from the run."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import fast_electra
from fast_electra.corpus.shards import MANIFEST, Manifest
from fast_electra.files import read_json, read_settings, seal
from fast_electra.run_folder import RunFolder, Trained
from fast_electra.settings import UserError

PIPELINES = {"rtd": "feature-extraction", "mlm": "fill-mask", "classifier": "text-classification"}


def model_card(config: dict[str, Any], trained: Trained, name: str, licence: str) -> str:
    """Return the card in Markdown.

    Args:
        config: what the export's config.json says.
        trained: what was exported.
        name: of the export.
        licence: of the corpus.
    """
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, **blocks)
    environment.filters["cell"] = _cell
    described, length = trained.description, trained.sequence_length
    rows = {"task": described.get("task"), "licence of the data": licence} | _rows(trained.run)
    rows |= {
        "longest sequence": f"{length} tokens" if length else None,
        "labels": ", ".join(described["labels"]) or None,
        "hash of the model": described["hash"],
        "hash of the tokenizer": described["tokenizer"],
    }
    page = environment.get_template("README.md.j2").render(
        config=config,
        kind=described["kind"],
        labels=described["labels"],
        pipeline=PIPELINES[described["kind"]],
        rows={key: value for key, value in rows.items() if value is not None},
        figures={key: value for key, value in described["evaluation"].items() if type(value) in (int, float)},
        version=fast_electra.__version__,
        name=name,
    )
    return page.encode("utf-8", errors="replace").decode()  # a file's name may hold one half of a surrogate pair


def _rows(run: RunFolder | None) -> dict[str, Any]:
    if run is None:
        return {}
    record, facts = run.record, run.facts
    curriculum = None
    if record.objective == "rtd" and record.curriculum and record.replacement.has_curriculum:
        name, of = record.replacement.range.parameter, record.curriculum
        curriculum = f"{name} from {of.initial:g}, {of.schedule}, rate {of.rate:g}"
    return {
        "objective": record.objective,
        "fine-tuned from": facts.model_hash,
        "data": _data(run),
        "updates": record.updates,
        "seed": record.seed,
        "curriculum": curriculum,
        "auxiliary model": facts.auxiliary_hash,
        "held-out accuracy of the auxiliary model": facts.heldout_mlm_accuracy,
    }


def _data(run: RunFolder) -> str | None:
    """Return what the training shards hold, if they are still there, and else their hash."""
    corpus, expected = run.record.corpus, run.facts.corpus_hash
    if corpus is None or expected is None:
        return None
    path = run.found(corpus.shards) / MANIFEST
    try:
        manifest = read_settings(path, Manifest, "", "")
        if seal(read_json(path)) != expected:
            raise UserError("another corpus is there now")
    except UserError:
        return f"shards with the hash {expected}"
    files = ", ".join(Path(file.path).name for file in manifest.inputs[:3]) + (", ..." if manifest.inputs[3:] else "")
    train = manifest.splits["train"]
    documents, tokens = sum(shard.documents for shard in train), sum(shard.tokens for shard in train)
    return f"{documents:,} documents, {tokens:,} tokens, from {files}"


def _cell(value: Any) -> str:
    """Return a value as a cell of a table: one line, in which nothing is Markdown."""
    text = f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>|#" else character for character in text)
