"""Our models as stock classes of transformers: a config, and weights with the same function.

An encoder of 32 buckets and distance 128 is an MPNet; any other is a LayoutLMv3 without images. Both have post-LN
layers and one relative position bias for all layers. Three differences are undone exactly, in fp64:

- Admin: x omega + f(x). The LayerNorm that makes x makes x omega instead, and the first matrix of f divides by omega.
- The embedding projection is multiplied into the embedding.
- Absolute positions, segments and places on a page, which ours has not, get tables of zeros.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.model.attention import relative_buckets
from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.model.heads import MaskedLanguageModel, SequenceClassifier
from fast_electra.settings import UserError

Json = dict[str, Any]
Weights = dict[str, Tensor]  # fp32, by the name that transformers gives
MODELING = "modeling_fast_electra"  # the file with the classes that transformers lacks

# Names of a layer's parts: queries, keys, values, attention's output and LayerNorm, the same of feed-forward.
_FEED = ("intermediate.dense", "output.dense", "output.LayerNorm")
LAYERS = {
    "mpnet": (*(f"attention.attn.{part}" for part in "qkvo"), "attention.LayerNorm", *_FEED),
    "layoutlmv3": (
        *(f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")),
        *_FEED,
    ),
}


class _Head(NamedTuple):
    """What follows the encoder. `opt_in` is the auto class that loads it, if transformers itself lacks the head."""

    architecture: str
    weights: Weights
    facts: Json
    opt_in: str = ""


@torch.no_grad()
def convert(model: Any, labels: list[str], positions: int) -> tuple[Json, Weights]:
    """Return the contents of config.json and of model.safetensors.

    Args:
        model: a Discriminator, a MaskedLanguageModel or a SequenceClassifier, in fp32 on the CPU.
        labels: of a classifier's outputs; none if it has one output, a number.
        positions: the longest sequence that the stock class has to take, in tokens.

    Raises:
        UserError: no stock class can hold the model.
    """
    encoder: Encoder = model.encoder
    config = _config(encoder.settings, positions)
    standard = (encoder.settings.relative_buckets, encoder.settings.relative_max_distance) == (32, 128)
    # MPNet's vocabulary head is as wide as its states. A narrower one fits if it fills that width by repeating itself.
    fits = not isinstance(model, MaskedLanguageModel) or encoder.hidden_size % encoder.embedding.embedding_dim == 0
    family, prefix = ("mpnet", "MPNet") if standard and fits else ("layoutlmv3", "LayoutLMv3")
    if family == "layoutlmv3":
        config |= _layout_config(encoder.settings, positions)
    if isinstance(model, MaskedLanguageModel):
        head = _mpnet_lm(model) if family == "mpnet" else _layout_lm(model)
    else:
        head = _classifier(model, labels) if isinstance(model, SequenceClassifier) else _detector(model)
    architecture = f"{prefix}For{head.architecture}"
    config |= {"architectures": [architecture], "model_type": family} | head.facts
    if head.opt_in:
        config["auto_map"] = {head.opt_in: f"{MODELING}.{architecture}"}
    weights = {f"{family}.{name}": weight for name, weight in _encoder(encoder, config).items()} | head.weights
    if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise UserError(f"one of Admin's scales (omega) is so near to 0 that {bad[0]} overflows; train it further")
    return config, weights


def _tensors(name: str, weight: Tensor, bias: Tensor | None = None) -> Weights:
    named = {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})
    return {key: tensor.float().contiguous() for key, tensor in named.items()}


def _part(name: str, part: Any, scale: Tensor | float = 1.0, input_scale: Tensor | float = 1.0) -> Weights:
    """Return a layer whose output is multiplied by `scale`, and whose input is already multiplied by `input_scale`."""
    return _tensors(name, part.weight.double() * scale / input_scale, part.bias.double() * scale)


def _encoder(encoder: Encoder, config: Json) -> Weights:
    layers: list[Any] = list(encoder.layers)
    omegas = {name: weight.double() for name, weight in encoder.named_parameters() if name.endswith("_omega")}
    if bad := [name for name, omega in omegas.items() if not omega.all()]:
        raise UserError(f"Admin's scale {bad[0]} has a 0; train it further")
    scales = [omega for layer in layers for omega in (layer.attention_omega.double(), layer.ffn_omega.double())]
    scales, table = [*scales, torch.ones(())], encoder.embedding.weight.double()
    if isinstance(projection := encoder.embedding_projection, nn.Linear):
        table = F.linear(table, projection.weight.double(), projection.bias.double())
    weights = _tensors("embeddings.word_embeddings", table)
    weights |= _part("embeddings.LayerNorm", encoder.embedding_norm, scales[0])
    for number, layer in enumerate(layers):
        names = [f"encoder.layer.{number}.{name}" for name in LAYERS[config["model_type"]]]
        before, between, after = scales[2 * number : 2 * number + 3]
        matrices = (layer.qkv.weight.double() / before).chunk(3)
        for name, weight, bias in zip(names, matrices, layer.qkv.bias.chunk(3), strict=False):
            weights |= _tensors(name, weight, bias)
        weights |= _part(names[3], layer.attention_output) | _part(names[4], layer.attention_norm, between)
        weights |= _part(names[5], layer.ffn_input, input_scale=between)
        weights |= _part(names[6], layer.ffn_output) | _part(names[7], layer.ffn_norm, after)
    size, bias = encoder.hidden_size, encoder.relative_bias.table.double()
    zeros = {"position": (config["max_position_embeddings"], size)}
    if config["model_type"] == "mpnet":
        weights |= _tensors("encoder.relative_attention_bias", bias)
    else:  # LayoutLMv3 divides the bias by the root of the heads' size, as it does the scores
        weights |= _tensors("encoder.rel_pos_bias", bias.t() * math.sqrt(size // encoder.settings.heads))
        zeros["token_type"] = (config["type_vocab_size"], size)
        zeros |= {f"{axis}_position": (1, config["coordinate_size"]) for axis in "xy"}
        zeros |= {f"{axis}_position": (1, config["shape_size"]) for axis in "hw"}
    return weights | {f"embeddings.{name}_embeddings.weight": torch.zeros(shape) for name, shape in zeros.items()}


def _detector(model: Any) -> _Head:
    weights = _part("transform", model.transform) | _part("output", model.output)
    return _Head("ReplacedTokenDetection", weights, {}, "AutoModelForPreTraining")


def _classifier(model: Any, labels: list[str]) -> _Head:
    names = dict(enumerate(labels or ["score"]))
    facts = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    facts |= {"problem_type": "single_label_classification" if labels else "regression"}
    weights = _part("classifier.dense", model.transform) | _part("classifier.out_proj", model.output)
    return _Head("SequenceClassification", weights, facts)


def _mpnet_lm(model: Any) -> _Head:
    """Repeat a head of E features D / E times: its LayerNorm sees the same mean and variance."""
    weight_VE, bias_V = model.head
    repeats = model.encoder.hidden_size // weight_VE.shape[1]
    weights = {"lm_head.bias": bias_V.float()}
    for name, part in (("lm_head.dense", model.transform), ("lm_head.layer_norm", model.norm)):
        weights |= _tensors(name, *(torch.cat([tensor] * repeats) for tensor in (part.weight, part.bias)))
    if repeats > 1:
        weights |= _tensors("lm_head.decoder", weight_VE.double().repeat(1, repeats) / repeats, bias_V.clone())
    return _Head("MaskedLM", weights, {"tie_word_embeddings": repeats == 1})


def _layout_lm(model: Any) -> _Head:
    weight_VE, bias_V = model.head
    weights = {"bias": bias_V.float()} | _part("transform", model.transform) | _part("norm", model.norm)
    if weight_VE.shape[1] != model.encoder.hidden_size:  # else it is the table of the word embeddings
        weights |= _tensors("decoder", weight_VE)
    return _Head("MaskedLM", weights, {"masked_lm_size": weight_VE.shape[1]}, "AutoModelForMaskedLM")


def _config(settings: EncoderSettings, positions: int) -> Json:
    return {
        "vocab_size": settings.vocabulary_size,
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": settings.ffn_size,
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.attention_dropout,
        "initializer_range": settings.initial_std,
        "layer_norm_eps": nn.LayerNorm(1).eps,
        "max_position_embeddings": positions + 2,
        "dtype": "float32",
    } | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def _layout_config(settings: EncoderSettings, positions: int) -> Json:
    """Return what config.json says of a LayoutLMv3 without images, whose 4 coordinates and 2 shapes fill D features."""
    size, setting = settings.hidden_size, (settings.relative_buckets, settings.relative_max_distance)
    if size % 2 or size < 6:
        raise UserError(f"LayoutLMv3 takes an even hidden_size from 6, not {size}; train another size")
    offset_R = torch.arange(1 - positions, positions)
    if not torch.equal(relative_buckets(offset_R, *setting), relative_buckets(offset_R, *setting, torch.float32)):
        raise UserError(
            f"LayoutLMv3 rounds distances otherwise in {setting[0]} buckets up to {setting[1]}; train with others"
        )
    return {
        "has_spatial_attention_bias": False,
        "rel_pos_bins": setting[0],
        "max_rel_pos": setting[1],
        "visual_embed": False,
        "type_vocab_size": 2,
        "max_2d_position_embeddings": 1,
        "coordinate_size": 1,
        "shape_size": size // 2 - 2,
    }
