"""Load exports as a user does who has transformers and not this package: `python load_exports.py FOLDER`.

FOLDER holds inputs.safetensors and a folder for each export. What came out is written beside each export's files.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, pipeline

sys.modules["fast_electra"] = None  # importing it would raise an ImportError
folder = Path(sys.argv[1])
inputs, texts = load_file(folder / "inputs.safetensors"), json.loads((folder / "texts.json").read_text())
batch = {"input_ids": inputs["tokens_BL"], "attention_mask": inputs["real_BL"]}


@torch.no_grad()
def tensors(model):
    """The first output for the batch, and for each sequence alone, padded again."""
    together = model(**batch)[0]
    alone = torch.zeros_like(together)
    for row, length in enumerate(inputs["real_BL"].sum(1)):
        found = model(inputs["tokens_BL"][row : row + 1, :length])[0]
        if alone.dim() > 1 and alone.shape[1] == batch["input_ids"].shape[1]:
            alone[row, :length] = found[0]
        else:
            alone[row] = found[0]
    return {"together": together, "alone": alone}


for export in sorted(path for path in folder.iterdir() if path.is_dir()):
    config = json.loads((export / "config.json").read_text())
    kind = config["architectures"][0].partition("For")[2]
    auto = {"ReplacedTokenDetection": "PreTraining"}.get(kind, kind)
    opt_in = "auto_map" in config
    plain, report = AutoModel.from_pretrained(export, output_loading_info=True, trust_remote_code=False)
    auto_class = getattr(transformers, f"AutoModelFor{auto}")
    headed, own = auto_class.from_pretrained(export, output_loading_info=True, trust_remote_code=opt_in)
    found = {f"hidden_{name}": tensor for name, tensor in tensors(plain.eval()).items()}
    found |= {f"logits_{name}": tensor for name, tensor in tensors(headed.eval()).items()}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, export / "found.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(export)
    facts = {
        "class": type(plain).__name__,
        "missing": sorted(report["missing_keys"]),
        "own_report": [sorted(names) for names in own.values()],
        "dtype": str(plain.dtype),
        "ids": tokenizer(texts["single"])["input_ids"],
        "pair": tokenizer(*texts["pair"])["input_ids"],
        "cut": len(tokenizer("a " * 2000, truncation=True)["input_ids"]),
        "decoded": tokenizer.decode(tokenizer(texts["single"])["input_ids"], skip_special_tokens=True),
        "keys": sorted(tokenizer(texts["single"])),
    }
    if auto == "MaskedLM":
        ask = pipeline("fill-mask", str(export), trust_remote_code=opt_in)
        facts["answer"] = [[one["token"], one["score"]] for one in ask(texts["masked"])]
    if auto == "SequenceClassification":
        facts["answer"] = pipeline("text-classification", str(export), top_k=None)(texts["single"])[0]
    (export / "found.json").write_text(json.dumps(facts))
