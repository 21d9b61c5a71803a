"""RTD with ten architectures of transformers as the auxiliary and six as the main model, on one process and on two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Pool
from safetensors.torch import load_file

transformers = pytest.importorskip("transformers")
from huggingface.pairs import PAIRS, UPDATES, resume, train, write_all  # noqa: E402 (it needs transformers)
from huggingface.zoo import KINDS  # noqa: E402

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pairs")
    write_all(place)
    return place


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_trains_alike_on_one_process_and_two_online_and_from_a_store(
    pair: tuple[str, str], folder: Path, tmp_path: Path, pools: dict[int, Pool]
) -> None:
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for world, pool in pools.items():
        output = tmp_path / str(world)
        output.mkdir()
        pool.run(train, folder, pair, output)
        written = json.loads((output / f"{'-'.join(pair)}.json").read_text())
        assert written["auxiliary_is_the_same"]
        found[world] = written["rows"]
        for online, offline in zip(found[world]["online"], found[world]["offline"], strict=True):
            for name in ("loss", "replaced_fraction", "auc", "gradient_norm"):
                assert online[name] == offline[name]
        for row, half in zip(found[world]["online"], found[world]["bf16"], strict=True):
            assert not half["skipped"] and half["loss"] == pytest.approx(row["loss"], rel=0.1)
    for one, two in zip(found[1]["online"], found[2]["online"], strict=True):
        assert one["replaced_fraction"] == two["replaced_fraction"] > 0.1
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    losses = [row["loss"] for row in found[1]["online"]]
    assert len(set(losses)) == UPDATES  # the weights move


def test_six_main_models_are_among_the_pairs() -> None:
    assert {main for _, main in PAIRS} == set(KINDS) and len({auxiliary for auxiliary, _ in PAIRS}) == 10


def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, tmp_path: Path, pools: dict[int, Pool]) -> None:
    pools[1].run(resume, folder, ("electra", "roberta"), tmp_path)
    whole, resumed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = load_file(folder / "main_roberta/model.safetensors")
    assert any(not torch.equal(start[name], whole[name]) for name in start)
    assert "the model of fast_electra.model.huggingface is another one" in (tmp_path / "refused.txt").read_text()
