"""An encoder of transformers as the main model: hidden states of unpadded batches, and back to a directory."""

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fast_electra.batch import Layout
from fast_electra.huggingface.folder import (
    check_encoder,
    check_padding,
    check_safe,
    load,
    new_model,
    open_config,
    own_tokenizer,
    read_config,
    set_dropout,
)
from fast_electra.huggingface.padding import pad, shorter
from fast_electra.huggingface.probe import KEY, PROBED, differ, probe_tokens, too_long
from fast_electra.huggingface.rtd_head import HEADS
from fast_electra.huggingface.saved import saved_folder, tokenizer_files
from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.settings import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class HuggingFaceEncoder(nn.Module):
    """A `TokenEncoder` (see `model.heads`). It pads privately, and no state of the padding leaves it."""

    def __init__(self, model: "PreTrainedModel", config: "PreTrainedConfig", pad_id: int) -> None:
        """Wrap a model.

        Args:
            model: of transformers, without a head.
            config: as the trained model's directory will have it. The model's own may have other rates of dropout.
            pad_id: the token of padding. What is computed does not depend on it.
        """
        super().__init__()
        embedding: Any = model.get_input_embeddings()
        self.model, self.config, self.pad_id = model, config, pad_id
        self.vocabulary_size: int = embedding.num_embeddings
        self.hidden_size: int = config.hidden_size
        self.tokenizer: dict[str, bytes] = {}  # files that are saved with the model

    def forward(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return hidden states, [T, D]."""
        short_B = shorter(layout)
        if short_B is None:
            return self.rectangle(tokens_T, layout)
        numbers, states = [], []
        for chosen_B in (~short_B, short_B):
            numbers.append(chosen_B[layout.sequence_T].nonzero()[:, 0])
            states.append(self.rectangle(tokens_T[numbers[-1]], Layout.of(layout.lengths_B[chosen_B])))
        return torch.cat(states).index_select(0, torch.cat(numbers).argsort())

    def rectangle(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return hidden states, [T, D], of sequences that are padded to the longest of them."""
        padded = pad(tokens_T, layout, self.pad_id)
        return padded.tokens(self.model(input_ids=padded.ids_BL, attention_mask=padded.mask_BL).last_hidden_state)

    def freeze(self, names: list[str]) -> None:
        """Exclude weights from training, and keep them in fp32 to be saved: an engine may convert its own."""
        for name in names:
            self.model.get_parameter(name).requires_grad_(False)
        every = self.model.named_parameters(remove_duplicate=False)
        trained = {name for name, weight in every if weight.requires_grad}
        self._kept = {name: held.clone() for name, held in self.model.state_dict().items() if name not in trained}

    def save(
        self, place: Path, weights: dict[str, Tensor], head: dict[str, Tensor], auto: str = "AutoModel", **facts: Any
    ) -> None:
        """Write a directory of Hugging Face, in fp32: the model's class is what it was.

        Args:
            place: the directory. One that was written here before is replaced.
            weights: those of `model`, by name.
            head: weights of a head, under the names that the file will have.
            auto: the class of transformers that has them all. If it has no such head, these are added to the file.
            facts: what fast_electra.json says.

        Raises:
            UserError: a weight is not finite, or the directory cannot be written.
        """
        held = self._kept | {name: weight for name, weight in weights.items() if name not in self._kept}
        if bad := sorted(name for name, tensor in (held | head).items() if not tensor.isfinite().all()):
            remedy = "train again from an earlier checkpoint"
            raise UserError(f"weights for {place} are not finite ({bad[0]}); {remedy}")
        fresh: Any = new_model(auto, place, self.config)
        without_pooler(fresh.base_model, like=self.model)
        inside = "" if fresh.base_model is fresh else fresh.base_model_prefix + "."
        held, inner = {inside + name: weight for name, weight in held.items()}, fresh.state_dict().keys()
        added = {name: tensor for name, tensor in head.items() if name not in inner}
        held |= {name: tensor for name, tensor in head.items() if name in inner}
        unexpected = fresh.load_state_dict(held, strict=False).unexpected_keys
        missing = set(dict(fresh.named_parameters())) - set(held)  # tied ones have one name here
        assert not unexpected and not missing, (unexpected, missing)
        with saved_folder(place, facts) as partial:
            fresh.save_pretrained(partial, state_dict=fresh.state_dict() | added, max_shard_size="999TB")
            for name, content in self.tokenizer.items():
                (partial / name).write_bytes(content)


def open_encoder(
    settings: HuggingFaceSettings, size: int, pad_id: int, length: int, seed: int
) -> tuple[HuggingFaceEncoder, list[str]]:
    """Open an encoder in fp32 on the CPU, and look whether it can be a main model.

    Args:
        settings: which one.
        size: V, the entries of the corpus's tokenizer.
        pad_id: its token of padding.
        length: L, positions of the longest sequence.
        seed: determines new weights.

    Returns:
        The encoder, and what a user should know of it, each in one line.

    Raises:
        UserError: the directory is damaged, or its model cannot be a main model.
    """
    place = Path(settings.huggingface)
    alone = place.is_file()  # a config without weights
    scratch = alone or settings.initialization == "random"
    if alone:
        read_config(place)
    else:
        check_safe(place, weights=not scratch)
    config = open_config(place)
    config.__dict__.pop("auto_map", None)  # names code that is neither run nor saved
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{place} is an encoder with a decoder ({config.model_type}): the main model is an encoder")
    if scratch:
        config.pad_token_id = pad_id
    else:
        check_padding(place, config, pad_id)
    used = copy.deepcopy(config)
    if config.model_type == "big_bird":
        used.attention_type = "original_full"  # the other one draws random blocks
    if settings.dropout is not None:
        set_dropout(used, settings.dropout)
    torch.manual_seed(seed)
    notes = []
    if scratch:
        model = new_model("AutoModel", place, used)
        without_pooler(model)
    else:
        model, info = load("AutoModel", place, used)
        check_encoder(place, model, info)
        if any("pooler." in key for key in info["missing_keys"]):
            without_pooler(model)
        if unread := sorted(set(info["unexpected_keys"]) - {name for names in HEADS for name in names.values()}):
            notes.append(f"{len(unread)} weights in {place} are not used, and not saved again ({unread[0]})")
    try:
        encoder = HuggingFaceEncoder(model.eval(), config, pad_id)
    except (AttributeError, NotImplementedError):
        raise UserError(f"{place} is no model of text ({config.model_type}): the main model is an encoder") from None
    if encoder.vocabulary_size < size:
        raise UserError(
            f"{place} has {encoder.vocabulary_size:,} tokens, and the tokenizer of the corpus has {size:,}: "
            + ("set vocab_size in its config" if scratch else own_tokenizer(place))
        )
    _probe_length(place, encoder, length)
    frozen = _probe(place, encoder, length)
    if not alone:
        encoder.tokenizer = tokenizer_files(place)
    if frozen:
        notes.append(f"{len(frozen)} weights of {place} get no gradient and stay as they are ({frozen[0]})")
    encoder.freeze(frozen)
    if settings.activation_checkpointing:
        _checkpoint_layers(place, model)
    return encoder.train(), notes


def without_pooler(model: Any, like: Any = None) -> None:
    """Remove a pooler that transformers lets a model be without; with `like`, only if that one has none either."""
    optional = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    if optional and getattr(like, "pooler", None) is None:
        model.pooler = None


@torch.no_grad()
def _probe_length(place: Path, encoder: HuggingFaceEncoder, length: int) -> None:
    """Run a sequence of L tokens on the CPU: on a GPU a missing position would kill the process."""
    short, long = (
        (tokens_T, Layout.of(torch.tensor([len(tokens_T)])))
        for tokens_T in probe_tokens(encoder.vocabulary_size, encoder.pad_id, 3, length)
    )
    try:
        encoder(*short)
    except Exception as error:  # whatever a model asks of its inputs
        raise _not_run(place, error) from None
    try:
        encoder(*long)
    except (IndexError, RuntimeError):
        raise too_long(place, encoder.model, length, KEY) from None


@torch.enable_grad()
def _probe(place: Path, encoder: HuggingFaceEncoder, length: int) -> list[str]:
    """Return the names of weights that get no gradient.

    Raises:
        UserError: two equal calls differ, a sequence alone is not the same as in a batch, or no state depends on a
            later token.
    """
    long, short = probe_tokens(
        encoder.vocabulary_size, encoder.pad_id, min(PROBED[0], length), min(PROBED[1], length // 2)
    )
    both, tokens_T = Layout.of(torch.tensor([len(long), len(short)])), torch.cat([long, short])
    other_T = tokens_T.clone()
    other_T[len(long) - 1] = (long[-1] + 1) % encoder.vocabulary_size
    weights = {name: weight for name, weight in encoder.model.named_parameters() if weight.requires_grad}
    try:
        states_TD = encoder.rectangle(tokens_T, both)
        gradients = torch.autograd.grad(states_TD.sum(), list(weights.values()), allow_unused=True)
        with torch.no_grad():
            first, again, changed = (
                states_TD.detach(),
                encoder.rectangle(tokens_T, both),
                encoder.rectangle(other_T, both),
            )
            alone = encoder(short, Layout.of(torch.tensor([len(short)])))
    except Exception as error:  # whatever a model makes of padding
        raise _not_run(place, error) from None
    earlier = slice(0, len(long) - 1)
    for wrong, otherwise in (
        (first.shape != (len(tokens_T), encoder.hidden_size), "its states have another size than its config says"),
        (differ(again, first), "two calls with the same tokens differ"),
        (differ(alone, first[len(long) :]), "it reads the padding after a sequence, so it would depend on the batch"),
        (torch.equal(changed[earlier], first[earlier]), "it is a decoder, whose states know no later token"),
    ):
        if wrong:
            raise UserError(f"{place} cannot be a main model: {otherwise}")
    return [name for name, gradient in zip(weights, gradients, strict=True) if gradient is None]


def _not_run(place: Path, error: Exception) -> UserError:
    return UserError(f"{place} cannot be a main model ({type(error).__name__}: {first_line(error)[:200]})")


def _checkpoint_layers(place: Path, model: nn.Module) -> None:
    """Let each layer keep its inputs only, and compute again what its backward pass needs.

    transformers' own way lacks some models, and DeepSpeed's breaks on weights that layers share.
    """
    layers = list(_layers(model))
    if not layers:
        raise UserError(f"{place} has no list of layers: use --set fast_electra.model.activation_checkpointing=false")
    for layer in layers:
        layer.forward = _checkpointed(layer, layer.forward)


def _checkpointed(layer: nn.Module, forward: Any) -> Any:
    def again(*inputs: Any, **named: Any) -> Any:
        if layer.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False, **named)
        return forward(*inputs, **named)

    return again


def _layers(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """Yield the members of the outermost lists of modules."""
    for child in module.children():
        if listed and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _layers(child, listed or isinstance(child, nn.ModuleList))
