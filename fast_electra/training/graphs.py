"""The frozen auxiliary's forward pass as CUDA graphs: one launch in place of hundreds.

A graph fixes shapes and addresses. It ends before sampling, where the temperature enters, so a new temperature needs no
new graph.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.batch import ON_DEVICE, Layout, ceil_div
from fast_electra.huggingface.masked_lm import HuggingFaceMaskedLM
from fast_electra.model.attention import choose
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.heads import MaskedLanguageModel

LIMIT = 16  # graphs; they share their working memory
ROWS = 256  # numbers of tokens and of masked positions are rounded up to a multiple of this, see `_more`
LENGTHS = 64  # the longest sequence is taken to have a multiple of this
WARM_UP = 3  # passes before a capture, in which libraries make their workspaces and modules fill their caches


class Inputs(NamedTuple):
    """What the model is called with."""

    tokens_T: Tensor
    layout: Layout
    positions_M: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """What a graph fixes: T, B, M and the longest sequence."""
        return len(self.tokens_T), len(self.layout.lengths_B), len(self.positions_M), self.layout.longest

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that is on the device."""
        return [self.tokens_T, self.positions_M, *(getattr(self.layout, name) for name in ON_DEVICE)]

    def copied(self) -> "Inputs":
        """Return the inputs at new addresses."""
        changes: dict[str, Any] = {name: getattr(self.layout, name).clone() for name in ON_DEVICE}
        return Inputs(self.tokens_T.clone(), dataclasses.replace(self.layout, **changes), self.positions_M.clone())


class Graph(NamedTuple):
    """A captured pass: `replay` reads `inputs` and writes `output_ME`, all at fixed addresses."""

    replay: Callable[[], None]
    inputs: Inputs
    output_ME: Tensor
    kept: list[Tensor]  # what else the graph reads, besides the weights

    def run(self, inputs: Inputs) -> Tensor:
        """Return hidden states [padded M, E], which the next call overwrites."""
        for static, given in zip(self.inputs.tensors, inputs.tensors, strict=True):
            static.copy_(given)
        self.replay()
        return self.output_ME


class ReplayedModel:
    """A frozen model in an inference engine, in eval mode. On a GPU it replays one CUDA graph for each shape.

    Only Triton's attention can be replayed: the other backends depend on the lengths. Without it, as on a CPU, the
    engine itself answers every call. It also answers the calls with dropout, and those that a profiler watches by
    hooks, which a replay would not call.

    Weights may be changed in place: the next replay uses them. If weight tensors are replaced by others, build a new
    `ReplayedModel`. All calls must come from one stream.
    """

    def __init__(self, engine: nn.Module, model: MaskedLanguageModel | HuggingFaceMaskedLM, limit: int = LIMIT) -> None:
        """Keep `engine`, which is called as its `model` is and never waits for the device.

        A graph is captured at the first call with a new shape, up to `limit` graphs. The engine answers all others.
        """
        self.engine, self.model, self.limit = engine, model, limit
        self.graphs: dict[tuple[int, ...], Graph] = {}
        self._all_modules = list(engine.modules())

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Weight [V, E] and bias [V] of the vocabulary head."""
        return self.model.head

    def hidden(self, tokens_T: Tensor, layout: Layout, positions_M: Tensor, drop: KeyedDropout | None = None) -> Tensor:
        """Return what the vocabulary head multiplies, [M, E]; see `FrozenMaskedLM`. The result is a copy, safe to keep.

        Inputs are padded even where no graph is used, because products of other shapes may round differently: results
        must not depend on which shapes came first.
        """
        if not self._replays() or drop is not None or self._hooked():
            more: dict[str, Any] = {} if drop is None else {"drop": drop}
            hidden_ME: Tensor = self.engine(tokens_T, layout, positions_M, hidden_only=True, **more)
            return hidden_ME
        inputs = padded(tokens_T, layout, positions_M)
        with torch.no_grad():
            if inputs.shape not in self.graphs and len(self.graphs) < self.limit:
                self.graphs[inputs.shape] = self._capture(inputs)
            graph = self.graphs.get(inputs.shape)
            hidden_ME = graph.run(inputs) if graph is not None else self.engine(*inputs, hidden_only=True)
        return hidden_ME[: len(positions_M)].clone()

    def _replays(self) -> bool:
        if not isinstance(self.model, MaskedLanguageModel):  # another one reads the lengths on the host
            return False
        settings = self.model.encoder.settings
        return choose(settings.attention, self.head[0], settings.hidden_size // settings.heads, None) == "triton"

    def _hooked(self) -> bool:
        """Return whether something watches the modules' calls: DeepSpeed's flops profiler, or its engine's timers."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self._all_modules)

    @cached_property
    def _place(self) -> tuple[torch.cuda.Stream, Any]:
        """Stream of all captures, and the memory pool that they share, because no two graphs run at the same time."""
        return torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def _capture(self, inputs: Inputs) -> Graph:
        stream, pool = self._place
        static = inputs.copied()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.engine(*static, hidden_only=True)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": NCCL's watchdog thread may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output_ME = self.engine(*static, hidden_only=True)
        # A module may replace what it caches beside its weights, as the relative bias does for a longer batch.
        kept = [value for module in self._all_modules for value in vars(module).values() if isinstance(value, Tensor)]
        return Graph(graph.replay, static, output_ME, kept)


def padded(tokens_T: Tensor, layout: Layout, positions_M: Tensor) -> Inputs:
    """Return the inputs with T, M and the longest length rounded up, so that few graphs serve all.

    The new tokens belong to no sequence, and the caller drops the new rows of M. All tokens are separate rows outside
    of attention, so padding costs a little time and changes nothing else.
    """
    more = (0, _more(len(tokens_T)))
    wider = dataclasses.replace(
        layout,
        longest=ceil_div(layout.longest, LENGTHS) * LENGTHS,
        sequence_T=F.pad(layout.sequence_T, more),
        position_T=F.pad(layout.position_T, more),
    )
    return Inputs(F.pad(tokens_T, more), wider, F.pad(positions_M, (0, _more(len(positions_M)))))


def _more(count: int) -> int:
    """Return what a count lacks to a multiple of ROWS, or of 1/8 of the power of two below it if that is more."""
    return -count % max(ROWS, 2 ** (count.bit_length() - 1) // 8)
