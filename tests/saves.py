"""What tests of checkpoints do on real ranks. Each function is (corpus, output, ranks), for a pool of `ranks.py`."""

import io
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import payloads
import pytest
import torch
from scenarios import build, train, tree

from fast_electra import files
from fast_electra.files import file_hash
from fast_electra.model.files import check_model
from fast_electra.settings import UserError
from fast_electra.training import checkpoint, engines
from fast_electra.training.engines import Ranks, SharedError
from fast_electra.training.loop import Run


def poisoned(corpus: Path, output: Path, ranks: Ranks) -> None:
    """DeepSpeed's loader meets each file of a checkpoint with a payload in it: it is refused, and never run."""
    run, folder, _ = saved(corpus, output, ranks)
    names = [path.name for path in (folder / checkpoint.name(1)).glob("*.pt")]
    assert len(names) == 2
    for name, kind in product(names, payloads.KINDS):
        whole, ran = output / f"{name}-{kind}" / checkpoint.name(1), output / "it_ran"
        shutil.copytree(folder / checkpoint.name(1), whole)
        payloads.write(whole / name, ran, kind)
        message = refused(checkpoint.load, whole, run.engine)
        assert message.startswith(f"{whole / name} cannot be loaded (") and not ran.exists(), message
        assert kind not in ("alone", "inside", "legacy") or "holds posix.mkdir, which no checkpoint needs" in message
    assert checkpoint.load(folder / checkpoint.name(1), run.engine) == 1


def fails_together(corpus: Path, output: Path, ranks: Ranks) -> None:
    """One rank alone meets trouble in a save. All say the same, nothing half-written stays, and the next save works."""
    run, folder, save = saved(corpus, output, ranks)
    last = ranks.rank == ranks.world - 1
    weight = next(run.engine.module.parameters())

    def still_whole() -> None:
        engines.wait_for_ranks()
        names = {path.name for path in folder.iterdir()}
        assert names == {"latest", checkpoint.name(1)} and checkpoint.check(folder / checkpoint.name(1)).update == 1
        assert (folder / "latest").read_text().strip() == checkpoint.name(1)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard) if last else (soft, hard))
    message = refused(save, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"zero_pp_rank_{ranks.world - 1}" in message and "File too large" in message and str(folder) in message
    still_whole()

    usage, measured = shutil.disk_usage, checkpoint.checkpoint_bytes
    shutil.disk_usage = lambda path: usage(path)._replace(free=1_000_000 if "partial" in str(path) else 0)  # type: ignore
    run_bytes = measured(run.engine)
    checkpoint.checkpoint_bytes = lambda engine: run_bytes * 100  # type: ignore[attr-defined]
    message = refused(save, 2)
    shutil.disk_usage, checkpoint.checkpoint_bytes = usage, measured  # type: ignore[attr-defined]
    assert f"{folder} has 1 MB of room" in message
    still_whole()

    for bad in (torch.nan, torch.inf):
        before = weight.data.flatten()[0].clone()
        if last:
            weight.data.view(-1)[0] = bad
        assert "not finite after update 2" in refused(save, 2)
        weight.data.view(-1)[0] = before
        still_whole()

    moments = next(iter(run.engine.optimizer.optimizer.state.values()))["exp_avg"]
    before = moments[0].clone()
    moments[0] = torch.nan if last else before
    assert "not finite" in refused(save, 2)
    moments[0] = before
    still_whole()

    def bad_disk(partial: Path) -> None:
        """What is read back is not what was written."""
        state = next(partial.glob("zero*"))
        state.write_bytes(state.read_bytes()[:-1] + b"\xff")

    checkpoint.forget = bad_disk  # type: ignore[attr-defined]
    message = refused(save, 2)
    checkpoint.forget = files.forget  # type: ignore[attr-defined]
    assert "was altered" in message and "the disk did not keep what was written" in message
    still_whole()

    save(2)
    assert checkpoint.newest(folder, ranks) == folder / checkpoint.name(2)
    size = sum(path.stat().st_size for path in (folder / checkpoint.name(2)).glob("*.pt"))
    assert run_bytes < size < run_bytes + 200_000  # what was asked for is what a checkpoint takes


def synced(corpus: Path, output: Path, ranks: Ranks) -> None:
    """Everything is on the disk before the name that leads to it, and the old checkpoint goes last."""
    _, folder, save = saved(corpus, output, ranks)
    with recorded() as done:
        save(2)
    partial, whole = folder / f"partial-{checkpoint.name(2)}", folder / checkpoint.name(2)
    moved = done.index(("rename", partial))
    for path in (*(partial / file.name for file in whole.iterdir() if file.name != checkpoint.COMPLETE), partial):
        assert ("fsync", path) in done[:moved], path
    (named,) = (place for place, (what, path) in enumerate(done) if what == "rename" and ".latest." in path.name)
    for path in (folder, folder.parent, folder.parent.parent):
        assert ("fsync", path) in done[moved:named], path
    removed = done.index(("rename", folder / checkpoint.name(1)))
    assert named < removed and ("fsync", folder) in done[named:removed]


@contextmanager
def recorded() -> Iterator[list[tuple[str, Path]]]:
    """Record each fsync and each rename, in order."""
    done: list[tuple[str, Path]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def spy(descriptor: int) -> None:
        done.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def moves(original: Callable[..., None]) -> Callable[..., None]:
        def move(source: Path, target: Path) -> None:
            done.append(("rename", Path(source)))
            original(source, target)

        return move

    os.fsync, os.rename, os.replace = spy, moves(rename), moves(replace)  # type: ignore[assignment]
    try:
        yield done
    finally:
        os.fsync, os.rename, os.replace = fsync, rename, replace


def exported_again(corpus: Path, output: Path, ranks: Ranks) -> None:
    """A complete run whose model is damaged or gone writes it again; a whole one is left alone."""
    values = tree(corpus, output / "run", "mlm", updates=4)
    train(values, ranks)
    model, status = output / "run/model", output / "run/status.json"
    weights, found = model / "model.safetensors", file_hash(model / "model.safetensors")
    damages: list[Callable[[], object]] = [
        lambda: os.truncate(weights, 1000),
        lambda: weights.write_bytes(weights.read_bytes()[:-1] + b"\x55"),
        lambda: (model / "model.json").write_text("{}"),
        weights.unlink,
        (model / "model.json").unlink,
        lambda: shutil.rmtree(model),
    ]
    for damage in damages:
        if ranks.rank == 0:
            damage()
        engines.wait_for_ranks()
        train(values, ranks)
        assert check_model(model, "")["kind"] == "mlm" and file_hash(weights) == found
        assert json.loads(status.read_text())["state"] == "completed"
    before = status.stat().st_mtime_ns
    train(values, ranks)
    assert status.stat().st_mtime_ns == before


def complete(corpus: Path, output: Path, ranks: Ranks) -> None:
    """A complete run whose checkpoints are gone is left alone, and nothing is trained into its folder."""
    values = tree(corpus, output / "run", "mlm", updates=4)
    train(values, ranks)
    rows = output / "run/metrics.jsonl"
    before = rows.read_bytes()
    if ranks.rank == 0:
        shutil.rmtree(output / "run/checkpoints")
    engines.wait_for_ranks()
    with redirect_stdout(io.StringIO()) as printed:
        train(values, ranks)
    assert ranks.rank > 0 or "run is complete (4 updates)" in printed.getvalue()
    assert "fast_electra.seed was 0 when" in refused(train, values, ranks, "fast_electra.seed=1")
    engines.wait_for_ranks()
    if ranks.rank == 0:
        os.truncate(output / "run/model/model.safetensors", 1000)
    engines.wait_for_ranks()
    message = refused(train, values, ranks)
    assert "model.safetensors is" in message and "was complete and has no checkpoint to write it from" in message
    assert rows.read_bytes() == before and not (output / "run/checkpoints").exists()


def config_changed(corpus: Path, output: Path, ranks: Ranks) -> None:
    """Damage in config.json is noticed. Whoever changes it on purpose removes its checksum."""
    values = tree(corpus, output / "run", "mlm", updates=2)
    train(values, ranks)
    path = output / "run/config.json"
    whole = path.read_bytes()
    settled = files.read_json(path)
    path.write_bytes(whole.replace(b'"log_every": 5', b'"log_every": 7'))
    assert "checksum differs), so the run cannot go on: restore it (or remove its key" in refused(train, values, ranks)
    path.write_text(json.dumps(settled | {"corpus_hash": "another"}))
    assert "corpus_hash was" in refused(train, values, ranks)
    path.write_text(json.dumps(settled))
    train(values, ranks)


def goes_on_from_an_older_one(corpus: Path, output: Path, ranks: Ranks) -> None:
    """The newest checkpoint is damaged: all ranks load the one before it, and the model is the same in the end."""
    values = tree(corpus, output / "run", "mlm", updates=6, checkpoint={"every": 2, "keep": 3})
    train(values, ranks)
    found = file_hash(output / "run/model/model.safetensors")
    engines.wait_for_ranks()
    if ranks.rank == 0:
        shutil.rmtree(output / "run/model")
        for update in (4, 6):
            newest = sorted((output / "run/checkpoints" / checkpoint.name(update)).glob("*.pt"))
            os.truncate(newest[-1], 5000)
    engines.wait_for_ranks()
    with redirect_stdout(io.StringIO()) as printed:
        train(values, ranks)
    assert ranks.rank > 0 or "was complete; what follows update-00000002 is trained again" in printed.getvalue()
    assert file_hash(output / "run/model/model.safetensors") == found
    resumed = [line for line in (output / "run/metrics.jsonl").read_text().splitlines() if "continues after" in line]
    assert len(resumed) == 1 and '"update": 2' in resumed[0]


def saved(corpus: Path, output: Path, ranks: Ranks) -> tuple[Run, Path, Callable[[int], None]]:
    """A run of which the first update is saved, the folder of its checkpoints, and what saves another."""
    run = build(tree(corpus, output / "run", "mlm"), ranks)
    folder = output / "run/checkpoints"

    def save(update: int) -> None:
        checkpoint.save(folder, run.engine, ranks, update, keep=1)

    run.update(1)
    save(1)
    return run, folder, save


def refused(function: Callable[..., Any], *arguments: Any) -> str:
    kind = UserError if function is checkpoint.load else SharedError
    with pytest.raises(kind, match=r"\A.*\Z") as caught:  # one line
        function(*arguments)
    return str(caught.value)
