"""The facts about each kind of folder and file.

Only JSON and headers are read; with `verify`, all bytes are hashed too. No tensor is loaded, and no pickle.
"""

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from fast_electra import config_file
from fast_electra.batch import ceil_div
from fast_electra.corpus.shards import MANIFEST, TOKENIZER, Manifest
from fast_electra.files import check_files, read_json
from fast_electra.huggingface.saved import check_saved, saved_facts
from fast_electra.inspection.hashes import HASHES, REMEDY, corpus_hash, described_in, read
from fast_electra.inspection.tokenizer import tokenizer_facts
from fast_electra.model.files import DESCRIPTION, WEIGHTS, check_model
from fast_electra.run_folder import CONFIG, RunFacts, RunFolder, RunRecord, run_above
from fast_electra.settings import UserError
from fast_electra.store.format import PLAN, StoreManifest, StorePlan
from fast_electra.training.metrics import read_metrics

COMPLETE, LATEST, METRICS, STATUS = "complete.json", "latest", "metrics.jsonl", "status.json"
_SIZES = ("layers", "hidden_size", "ffn_size", "heads", "vocabulary_size")
_HOLDS = {"rtd": "discriminator", "mlm": "masked language model: an auxiliary", "classifier": "fine-tuned classifier"}
Facts = dict[str, Any]
T = TypeVar("T")


class Inspection:
    """One look at a path. Its methods take a folder and return facts. They raise a UserError if it is damaged."""

    def __init__(self, verify: bool) -> None:
        """Begin; `problems` gets a line for each part that is damaged, or is not the one that was meant."""
        self.verify = verify
        self.problems: list[str] = []

    def part(self, look: Callable[[Path], T], folder: Path) -> T | None:
        """Return what `look` finds; None if the part is damaged, which is then a problem of the whole."""
        try:
            return look(folder)
        except (UserError, OSError) as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None

    def link(self, what: str, expected: str | None, path: Path) -> Facts:
        """Return the hash of what something was made from, and whether it is still at a path."""
        found: str | None = None
        state = "not there"
        if path.exists():
            found = self.part(HASHES[what], path)
            state = "the same" if found == expected else "there"
            if found is None:
                state = "damaged"
            elif expected not in (found, None):
                state = "another one"
                self.problems.append(f"{path} is another {what} ({found[:12]}) than the one that was meant")
        return {"hash": expected or found, "path": str(path), "state": state}

    def model(self, folder: Path) -> Facts:
        """Describe a trained model, from its description and the header of its weights."""
        weights, described = folder / WEIGHTS, described_in(folder)
        if self.verify:
            check_model(folder, REMEDY)
        facts = {
            "holds": _HOLDS.get(described["kind"], described["kind"]),
            "encoder": {name: described["encoder"][name] for name in _SIZES},
            **_weights(weights),
            "hash": described["hash"],
            "weights": described["weights"],
        }
        run, beside = self.part(run_above, folder), folder.resolve().parent / "tokenizer"
        place = beside if run is None else run.tokenizer or beside
        facts["tokenizer"] = self.link("tokenizer", described["tokenizer"], place)
        facts["run"] = None if run is None else str(run.folder)
        return facts | {name: described[name] for name in ("labels", "evaluation")}

    def export(self, folder: Path) -> Facts:
        """Describe what `fast-electra export` wrote, or another model as transformers writes them."""
        path, classes = folder / CONFIG, None
        with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
            classes = json.loads(path.read_bytes()).get("architectures")
        if not classes:
            raise UserError(f"{path} is missing, damaged, or names no class of transformers; export the model again")
        facts, saved = {"class": classes, **_weights(folder / WEIGHTS)}, saved_facts(folder, REMEDY)
        if saved and self.verify:
            check_saved(folder, REMEDY)
        return facts | {name: saved[name] for name in ("weights", "tokenizer", "evaluation") if name in saved}

    def checkpoint(self, folder: Path) -> Facts:
        """Describe one checkpoint."""
        with _quiet():
            from fast_electra.training.checkpoint import Complete, name
        complete = read(folder / COMPLETE, Complete)
        if name(complete.update) != folder.resolve().name:
            raise UserError(f"{folder / COMPLETE} describes update {complete.update}: the folder was renamed")
        check_files(folder, complete.records, REMEDY, self.verify)
        above = folder.resolve().parent
        return {
            "update": complete.update,
            "processes": complete.ranks,
            "bytes": sum(record.size for record in complete.records),
            "files": [record.model_dump() for record in complete.records],
            "latest": _first_line(above / LATEST) == folder.resolve().name,
            "run": None if (run := self.part(run_above, above)) is None else str(run.folder),
        }

    def checkpoints(self, folder: Path) -> Facts:
        """Describe all checkpoints of a run."""
        found = {path.name: self.part(self.checkpoint, path) for path in sorted(folder.glob("update-*"))}
        latest = _first_line(folder / LATEST)
        if latest not in found:
            self.problems.append(f"{folder / LATEST} names {latest!r:.80}, which is not there")
        whole = {name: {key: facts[key] for key in ("bytes", "processes")} for name, facts in found.items() if facts}
        return {"checkpoints": whole, "latest": latest}

    def shards(self, folder: Path) -> Facts:
        """Describe a folder of token shards."""
        manifest = read(folder / MANIFEST, Manifest)
        records = [file for shards in manifest.splits.values() for shard in shards for file in (shard.bin, shard.idx)]
        check_files(folder, records, REMEDY, self.verify)
        splits: Facts = {
            name: {key: sum(getattr(shard, key) for shard in shards) for key in ("documents", "tokens")}
            | {"shards": len(shards)}
            for name, shards in manifest.splits.items()
        }
        frozen, beside = folder / TOKENIZER, folder.resolve().parent / "tokenizer"
        place = frozen if frozen.is_dir() else beside
        return {
            "hash": corpus_hash(folder),
            **splits,
            "bytes": sum(record.size for record in records),
            "text": {"bytes": manifest.bytes, "documents": manifest.documents, "tokens": manifest.tokens},
            "rejected": manifest.rejected,
            "tokenizer": self.link("tokenizer", manifest.tokenizer, place),
            "inputs": [file.path for file in manifest.inputs],
        }

    def store(self, folder: Path) -> Facts:
        """Describe an offline store, complete or not."""
        plan = read(folder / PLAN, StorePlan)
        if plan.part < 1:
            raise UserError(f"{folder / PLAN} has parts of {plan.part} sequences; {REMEDY}")
        parts = sum(ceil_div(record.sequences, plan.part) for record in plan.sets)
        facts: Facts = {"written": f"{len(list(folder.glob('*.safetensors')))} of {parts} parts"}
        if (folder / MANIFEST).exists():
            manifest = read(folder / MANIFEST, StoreManifest)
            if manifest.plan != plan:
                raise UserError(f"{folder / MANIFEST} has another plan than {folder / PLAN}; {REMEDY}")
            check_files(folder, manifest.parts, REMEDY, self.verify)
            facts |= {"positions": manifest.positions, "pieces": manifest.pieces, "bytes": manifest.bytes}
        else:
            facts["written"] += ": not complete; start its command again, which resumes"
        return facts | {
            "draws": f"every {plan.parameter}" if plan.kind == "axis" and plan.parameter else plan.kind,
            "sequences": {record.name: record.sequences for record in plan.sets},
            "hash": plan.fingerprint,
            "made for": plan.facts.exact,
            "up to": plan.facts.most,
        }

    def tokenizer(self, folder: Path) -> Facts:
        """Describe a tokenizer."""
        return tokenizer_facts(folder)

    def metrics(self, folder: Path) -> Facts:
        """Describe the rows of a run's metrics.jsonl."""
        updates, evaluations, events = read_metrics(folder)
        if not updates and not events and (folder / METRICS).stat().st_size:
            raise UserError(f"{folder / METRICS} holds no row of a run")
        facts: Facts = {"rows": {"updates": len(updates), "evaluations": len(evaluations)}}
        facts |= {"last": {key: updates[-1].get(key) for key in ("update", "updates", "loss")}} if updates else {}
        figures = evaluations[-1] if evaluations else {}
        facts["evaluation"] = {key: figures[key] for key in figures if key.startswith("heldout_")}
        return facts | {"events": [f"update {row['update']}: {row['event']}, {row.get('message')}" for row in events]}

    def run(self, folder: Path) -> Facts:
        """Describe a run, its parts, and what it was made from."""
        run = RunFolder.open(folder)
        record, facts = run.record, dict[str, Any]()
        facts |= {key: getattr(record, key) for key in ("objective", "recipe", "task", "seed", "updates")}
        facts["status"] = status = self.part(_status, folder)
        parts = ("model", "auxiliary/model")
        models = {part: folder / part for part in parts if (folder / part / DESCRIPTION).is_file()}
        foreign = (folder / "model" / CONFIG).is_file()  # a fine-tuned model of Hugging Face
        if "model" not in models and not foreign and status and status["state"] == "completed":
            self.problems.append(f"{folder / 'model'} is missing, and the run was completed; {REMEDY}")
        found = {part: self.part(self.model, path) or {} for part, path in models.items()}
        facts |= {part: {key: of.get(key) for key in ("hash", "parameters", "bytes")} for part, of in found.items()}
        facts |= self.made_from(run)
        if own := found.get("model", {}).get("tokenizer"):
            facts["tokenizer"] = own
        if (folder / "checkpoints").is_dir():
            facts |= self.part(self.checkpoints, folder / "checkpoints") or {}
        return facts | ((self.part(self.metrics, folder) or {}) if (folder / METRICS).is_file() else {})

    def made_from(self, run: RunFolder) -> Facts:
        """Return where all is now that a run was, or will be, made from."""
        record, hashes, facts = run.record, run.facts, Facts()
        if record.corpus is not None:
            facts["corpus"] = self.link("corpus", hashes.corpus_hash, run.found(record.corpus.shards))
        if (place := run.tokenizer) is not None:
            facts["tokenizer"] = self.link("tokenizer", None, place)
        auxiliary = record.auxiliary and (record.auxiliary.run or record.auxiliary.huggingface)
        if auxiliary:
            facts["auxiliary"] = self.link("auxiliary", hashes.auxiliary_hash, run.found(auxiliary))
        if record.model.huggingface is not None:
            facts["begun from"] = self.link("model", hashes.existing_hash, run.found(record.model.huggingface))
        if record.pretrained is not None:
            before, of = run.found(record.pretrained), hashes.model_hash
            facts["pretrained"] = self.link("model", of, before) if isinstance(of, str) else str(before)
        return facts | {"store": record.replacement.store and str(run.found(record.replacement.store))}

    def config(self, path: Path) -> Facts:
        """Check a run's config file, and say whether what it names is there."""
        section = config_file.read(path).get("fast_electra")
        if not isinstance(section, dict):
            raise UserError(f'{path} is no config of a run (it has no section "fast_electra"), and no other known file')
        if "objective" not in section:  # of fine-tuning, which the command line completes
            return {"section": section}
        with _quiet():
            from fast_electra import config
        loaded = config.load(path)
        run, folder = loaded.run, Path(loaded.run.run)
        facts: Facts = {
            "objective": f"{run.objective}, {run.recipe}",
            "updates": f"{run.updates:,} of {loaded.sequences:,} sequences, at most {run.corpus.sequence_length} long",
            "encoder": {name: value for name, value in run.model if name in (*_SIZES, "huggingface")},
            "run": f"{folder} ({'begun' if (folder / CONFIG).exists() else 'not begun'})",
        }
        record = RunRecord.model_validate(run.model_dump())
        return facts | self.made_from(RunFolder(folder, record, RunFacts(fast_electra=record)))


def _weights(path: Path) -> Facts:
    """Count the parameters of a safetensors file in its header."""
    try:
        with safe_open(path, framework="numpy") as file:  # which compares the header with the size
            parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); {REMEDY}") from None
    return {"parameters": parameters, "bytes": path.stat().st_size}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what DeepSpeed prints while it is imported."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _first_line(path: Path) -> str:
    """Return what a file of one line holds; "" if there is none."""
    return path.read_text(encoding="utf-8", errors="replace").strip()[:80] if path.is_file() else ""


def _status(folder: Path) -> Facts:
    path = folder / STATUS
    try:
        status = read_json(path) if path.is_file() else {"state": "unknown"}
        return {key: status.get(key) for key in ("state", "update", "message")}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {REMEDY}") from None
