"""Nothing that somebody sends is unpickled: a payload in any file of a run, a corpus or a store never runs."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import payloads
import pytest
import small
from conftest import ROOT, Corpus

from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.shards import Shards
from fast_electra.files import FileRecord, file_hash, write_json
from fast_electra.model.files import load_model, save_model
from fast_electra.report.page import write_report
from fast_electra.settings import UserError
from fast_electra.store.format import PartFile
from fast_electra.training import checkpoint
from fast_electra.training.checkpoint_files import read_checkpoint_file
from fast_electra.training.metrics import read_metrics

KIND = pytest.mark.parametrize("kind", payloads.KINDS)


@pytest.fixture
def shows(tmp_path: Path) -> Any:
    """The folder that a payload makes."""
    made = tmp_path / "it_ran"
    yield made
    assert not made.exists(), "the payload ran"


@KIND
def test_the_payload_would_run(tmp_path: Path, kind: str) -> None:
    import numpy as np
    import torch

    payloads.write(tmp_path / "file", tmp_path / "it_ran", kind)
    if kind == "bare":
        pickle.loads((tmp_path / "file").read_bytes())
    elif kind == "numpy":
        np.load(tmp_path / "file", allow_pickle=bool(1))
    else:
        torch.load(tmp_path / "file", weights_only=bool(0))
    assert (tmp_path / "it_ran").exists()


@pytest.mark.drill("code in a file that others send")
@KIND
def test_a_checkpoint_with_a_payload_is_passed_over(
    tmp_path: Path, shows: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its hash is that of the payload, as whoever sends the folder would see to."""
    folder = tmp_path / "checkpoints" / checkpoint.name(3)
    folder.mkdir(parents=True)
    payloads.write(folder / "mp_rank_00_model_states.pt", shows, kind)
    record = FileRecord.of(folder / "mp_rank_00_model_states.pt")
    write_json(
        folder / checkpoint.COMPLETE, {"update": 3, "ranks": 1, "files": {record.name: (record.size, record.hash)}}
    )
    (folder.parent / "latest").write_text(folder.name)
    with pytest.raises(UserError, match=r"states\.pt cannot be loaded \(.*no whole checkpoint is left") as caught:
        checkpoint.newest(folder.parent, small.ALONE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "run"), [("plain", "plain"), ("sixteen_bit", "bf16"), ("half", "fp16")])
def test_checkpoints_of_every_precision_are_read(scenario: Any, name: str, run: str) -> None:
    """What is read is a short list, and a loss scale is one more object."""
    files = list((scenario(name) / run / "checkpoints").rglob("*.pt"))
    states = [read_checkpoint_file(file) for file in files]
    assert len(states) >= 3 and all("module" in state or "optimizer_state_dict" in state for state in states)


@pytest.mark.drill("code in a file that others send")
@KIND
def test_a_model_with_a_payload_is_refused(tmp_path: Path, shows: Path, kind: str) -> None:
    folder = tmp_path / "model"
    save_model(folder, "mlm", small.sizes(), small.masked_lm().state_dict())
    description = json.loads((folder / "model.json").read_text())
    payloads.write(folder / "model.safetensors", shows, kind)
    del description["checksum"], description["weights"]
    write_json(folder / "model.json", description | {"hash": file_hash(folder / "model.safetensors")})
    with pytest.raises(UserError, match=r"model\.safetensors "):
        load_model(folder, "mlm", "train one")
    (folder / "model.json").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"model\.json cannot be read"):
        load_model(folder, "mlm", "train one")


@pytest.mark.drill("code in a file that others send")
@KIND
def test_shards_with_a_payload_are_refused(tiny_corpus: Corpus, tmp_path: Path, shows: Path, kind: str) -> None:
    for suffix in (".idx", ".bin"):
        folder = tmp_path / suffix
        folder.mkdir()
        for path in tiny_corpus.shards.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest.pop("checksum", None)
        shard = manifest["splits"]["train"][0]
        file = folder / shard[suffix[1:]]["name"]
        payloads.write(file, shows, kind)
        shard[suffix[1:]] = FileRecord.of(file).model_dump()
        write_json(folder / "manifest.json", manifest)
        with pytest.raises(UserError, match=rf"\{suffix}"):
            Shards.open(folder)


@pytest.mark.drill("code in a file that others send")
@KIND
def test_a_store_a_tokenizer_and_a_report_run_no_payload(
    tiny_corpus: Corpus, tmp_path: Path, shows: Path, kind: str
) -> None:
    payloads.write(tmp_path / "train-00000.safetensors", shows, kind)
    with pytest.raises(Exception, match=r"(?i)header|safetensor|deserializ"):
        PartFile(tmp_path / "train-00000.safetensors")
    for path in tiny_corpus.tokenizer.iterdir():
        payloads.write(tmp_path / path.name, shows, kind)
    with pytest.raises(UserError):
        SentencePieceTokenizer.load(tmp_path)
    for name in ("config.json", "metrics.jsonl", "status.json", "examples.json"):
        payloads.write(tmp_path / name, shows, kind)
    read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "updates": 1, "loss": 1.0}\n')
    write_report([tmp_path], tmp_path / "report.html")


def test_the_tree_unpickles_nothing() -> None:
    """A file that reads pickles would have to be named here, with its reason. DeepSpeed's own reader is replaced."""
    reads = re.compile(
        r"weights_only\s*=\s*False|\bpickle\.(load|Unpickler)|allow_pickle\s*=\s*True|\b(dill|joblib|shelve|cloudpickle)\b"
        r"|marshal\.load|yaml\.(unsafe_|full_)?load\b|read_pickle|torch\.load\((?!.*weights_only=True)"
    )
    files = [path for top in ("fast_electra", "kernels", "launch", "experiments", "benchmarks", "tests", ".ci")
             for path in (ROOT / top).rglob("*.py")]  # fmt: skip
    found = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        if path.name not in ("payloads.py", "test_payloads.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if reads.search(line)
    }
    assert len(files) > 100 and not found
