"""Directories of Hugging Face that are broken: a change of a whole one for each kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return remove


def cut_to(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut


def text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


BROKEN: dict[str, Callable[[Path], object]] = {
    "pickle_only": pickle_only,
    "no_weights": without("model.safetensors"),
    "half_weights": cut_to("model.safetensors", 0.5),
    "header_cut": cut_to("model.safetensors", 0.01),
    "empty_weights": cut_to("model.safetensors", 0),
    "weights_are_text": text("model.safetensors", "weights" * 100),
    "no_config": without("config.json"),
    "config_is_no_json": text("config.json", '{"model_type": '),
    "config_is_a_list": text("config.json", "[]"),
    "config_has_no_type": text("config.json", "{}"),
    "unknown_type": lambda folder: edited(folder, model_type="gremlin"),
    "remote_code": lambda folder: edited(folder, model_type="gremlin", auto_map={"AutoConfig": "code.Config"}),
    "quantized": lambda folder: edited(folder, quantization_config={"quant_method": "bitsandbytes"}),
    "adapter": text("adapter_config.json", "{}"),
    "other_hidden_size": lambda folder: edited(folder, hidden_size=16),
    "more_layers": lambda folder: edited(folder, num_hidden_layers=3),
    "odd_heads": lambda folder: edited(folder, num_attention_heads=5),
    "sizes_are_text": lambda folder: edited(folder, hidden_size="wide"),
    "huge": lambda folder: edited(folder, hidden_size=2**40),
    "few_positions": lambda folder: edited(folder, max_position_embeddings=8),
    "short_positions": lambda folder: (
        edited(folder, max_position_embeddings=8),
        weights(
            folder,
            lambda held: held.update({name: held[name][:8].clone() for name in held if "position_embeddings" in name}),
        ),
    ),
    "not_finite": lambda folder: weights(folder, lambda held: next(iter(held.values())).fill_(torch.nan)),
    "encoder_lacks_a_weight": lambda folder: weights(
        folder, lambda held: held.pop(next(name for name in held if "attention.self.query.weight" in name))
    ),
    "weights_of_another_model": lambda folder: save_file({"x": torch.ones(3)}, folder / "model.safetensors"),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "gone": shutil.rmtree,
}
