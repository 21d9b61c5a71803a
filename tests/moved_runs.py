"""A run with all that it was made from, in a folder of its own where anything may be damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

from conftest import Corpus

from fast_electra.files import read_json, write_sealed

UPDATE = "plain/checkpoints/update-00000009"  # one of the run's checkpoints, not the last


def moved(runs: Path, corpus: Corpus, folder: Path) -> Path:
    """Copy the runs `plain` and `auxiliary`, tokenizer and shards; the runs name them by relative paths."""
    for name in ("plain", "auxiliary"):
        shutil.copytree(runs / name, folder / name)
        config = read_json(folder / name / "config.json")
        config["fast_electra"]["corpus"] |= {"tokenizer": "tokenizer", "shards": "shards"}
        config["fast_electra"]["run"] = name
        if name == "plain":
            config["fast_electra"]["auxiliary"]["run"] = "auxiliary"
        write_sealed(folder / name / "config.json", config)
    for source in (corpus.tokenizer, corpus.shards):
        shutil.copytree(source, folder / source.name)
    return folder


def altered(path: Path, **changes: Any) -> None:
    """Change values of a sealed JSON file and leave its seal."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
