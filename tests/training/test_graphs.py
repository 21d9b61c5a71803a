"""A `ReplayedModel` answers what its model answers. One graph serves a shape, whatever lengths and temperatures come.

Without a GPU a pass of the same kind replaces the graph: its inputs are fixed, and each replay overwrites its output.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import Layout, MaskedBatch, TokenBatch, masked_counts
from fast_electra.corruption import Masking, mask
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.replacement.auxiliary import Dropout, DropToken, Temperature
from fast_electra.training.engines import forward_flops, inference_engine
from fast_electra.training.graphs import LENGTHS, LIMIT, ROWS, Graph, Inputs, ReplayedModel, padded

SIZES = EncoderSettings(vocabulary_size=200, layers=2, hidden_size=32, ffn_size=64, heads=2, initial_std=0.4)
FULL, SHORTER = [64] * 6, [64, 60, 51, 64, 33, 20]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Emulated(ReplayedModel):
    """All of `ReplayedModel` except the graph itself, on any device."""

    def _replays(self) -> bool:
        return True

    def _capture(self, inputs: Inputs) -> Graph:
        static = inputs.copied()

        def forward() -> Tensor:  # a graph knows the lengths from the device alone
            of_tokens = {name: getattr(static.layout, name) for name in ("sequence_T", "position_T")}
            layout = dataclasses.replace(Layout.of(static.layout.sizes_B.long()), **of_tokens)
            return self.engine(static.tokens_T, layout, static.positions_M, hidden_only=True)

        output_ME = forward()
        return Graph(lambda: output_ME.copy_(forward()), static, output_ME, [])


only_on_a_gpu = pytest.mark.parametrize("device", DEVICES[1:], indirect=True)  # faults that only a real graph has


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(device: str) -> MaskedLanguageModel:
    return MaskedLanguageModel(SIZES, seed=7).requires_grad_(False).eval().to(device)


def captured(model: MaskedLanguageModel, limit: int = LIMIT) -> ReplayedModel:
    on_gpu = next(model.parameters()).is_cuda
    return (ReplayedModel if on_gpu else Emulated)(model, model, limit)


def masked_batch(lengths: list[int], device: str, seed: int = 0) -> MaskedBatch:
    """Return random tokens in sequences of these lengths."""
    layout = Layout.of(torch.tensor(lengths), randomness.key(seed, torch.arange(len(lengths))))
    tokens_T = torch.randint(5, SIZES.vocabulary_size, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    batch = TokenBatch(tokens_T, layout, torch.arange(len(lengths)))
    return mask(batch.to(torch.device(device)), Masking(0.15, 4))


def arguments(masked: MaskedBatch) -> Inputs:
    return Inputs(masked.tokens_T, masked.layout, masked.positions_M)


def close(found: Tensor, expected: Tensor) -> bool:
    """Compare up to the rounding of products of another shape."""
    exact = 1e-6 if found.device.type == "cpu" else 1e-4
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=exact, atol=exact)


@pytest.mark.parametrize("lengths", [FULL, SHORTER])
@pytest.mark.parametrize("dropping", [False, True])
def test_on_a_cpu_the_engine_is_called_once_with_what_came(lengths: list[int], dropping: bool) -> None:
    model = MaskedLanguageModel(SIZES, seed=7).eval()
    masked, calls = masked_batch(lengths, "cpu"), []
    more = {}
    if dropping:
        more = {"drop": KeyedDropout(hidden_rate=0.3)}
    expected = model(*arguments(masked), hidden_only=True, **more)
    called = ReplayedModel(model, model)
    model.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True)
    given = arguments(masked)
    found = called.hidden(*given, **more)
    ((seen, named),) = calls
    assert all(one is other for one, other in zip(seen, given, strict=True)) and named == {"hidden_only": True, **more}
    assert torch.equal(found, expected)
    assert not called.graphs


def test_deepspeed_hosts_what_is_captured() -> None:
    model = MaskedLanguageModel(SIZES, seed=7)
    engine = inference_engine(model, "fp32")
    assert type(engine.engine).__name__ == "InferenceEngine" and engine.engine.module is model
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not engine._hooked()  # with hooks no graph would ever be used


def test_a_replay_asks_about_the_attention_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the embedding has another size: a backend that is not Triton's must never be captured."""
    asked = []
    for module in ("fast_electra.model.encoder", "fast_electra.training.graphs"):
        monkeypatch.setattr(f"{module}.choose", lambda name, x, size, drop: asked.append((name, size)) or "matmul")
    model = MaskedLanguageModel(SIZES.model_copy(update={"embedding_size": 8}), seed=7).eval()
    ReplayedModel(model, model).hidden(*arguments(masked_batch(SHORTER, "cpu")))
    assert asked == [("auto", 16), ("auto", 16)]


def ragged(length: int, shortest: float, b: int, seed: int) -> Inputs:
    """Sequences of random lengths between a share of the longest and the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = (length * (shortest + (1 - shortest) * torch.rand(b, generator=generator))).long().clamp(min=3)
    layout = Layout.of(lengths_B)
    masked = int(masked_counts(lengths_B, 0.15).sum())
    return Inputs(torch.ones(len(layout.sequence_T), dtype=torch.int64), layout, torch.ones(masked, dtype=torch.int64))


@pytest.mark.parametrize("shortest", [0.1, 0.55])
@pytest.mark.parametrize(("b", "length"), [(1, 16), (8, 128), (16, 512), (32, 512), (128, 512), (128, 128)])
def test_padding_leaves_few_shapes_and_costs_little(b: int, length: int, shortest: float) -> None:
    """100 batches whose lengths vary as in a real corpus have as many shapes as there may be graphs."""
    shapes = set()
    for seed in range(100):
        given = ragged(length, shortest, b, seed)
        found = padded(*given)
        (t, _, m, longest), tokens, masked = found.shape, len(given.tokens_T), len(given.positions_M)
        assert 0 <= t - tokens < max(ROWS, tokens / 8) and 0 <= m - masked < max(ROWS, masked / 8)
        assert given.layout.longest <= longest < given.layout.longest + LENGTHS
        assert not found.positions_M[masked:].any()
        shapes.add(found.shape)
    assert len(shapes) <= LIMIT


@pytest.mark.parametrize("lengths", [FULL, SHORTER])
def test_padding_leaves_the_others_alone(lengths: list[int], model: MaskedLanguageModel, device: str) -> None:
    given = arguments(masked_batch(lengths, device))
    more = padded(*given)
    assert len(more.positions_M) == ROWS > len(given.positions_M) and len(more.tokens_T) % ROWS == 0
    found = model(*more, hidden_only=True)[: len(given.positions_M)]
    assert close(found, model(*given, hidden_only=True))


def test_one_graph_serves_all_batches_of_a_shape(model: MaskedLanguageModel, device: str) -> None:
    """It serves all lengths and M. No later call changes a result."""
    called = captured(model)
    batches = [
        masked_batch([64, *(64 - (seed * 7 + row * 5) % 22 for row in range(5))], device, seed) for seed in range(6)
    ]
    batches += [masked_batch(FULL, device, seed) for seed in range(6, 9)]
    assert len({len(batch.positions_M) for batch in batches}) > 4
    found = [called.hidden(*arguments(batch)) for batch in batches]
    assert {shape[:3] for shape in called.graphs} == {(2 * ROWS, 6, ROWS)} and len(called.graphs) <= 4
    for hidden_ME, batch in zip(found, batches, strict=True):
        assert close(hidden_ME, model(*arguments(batch), hidden_only=True))


@only_on_a_gpu
def test_a_longer_batch_does_not_break_graphs_of_shorter_ones(model: MaskedLanguageModel, device: str) -> None:
    """The table of relative positions grows with the longest batch, and the old one must not be freed."""
    called = captured(model)
    widths = [8, 40, 200, 24, 8, 40]
    for turn in range(3):
        for width in widths:
            batch = masked_batch([width, width // 2, width], device, turn)
            hidden_ME = called.hidden(*arguments(batch))
            litter = [torch.full((width, width), 10**9, device=device) for width in widths for _ in range(4)]
            assert close(hidden_ME, model(*arguments(batch), hidden_only=True))
            del litter
    assert len(called.graphs) == 4


def test_beyond_the_limit_the_engine_itself_answers(model: MaskedLanguageModel, device: str) -> None:
    called = captured(model, limit=2)
    batches = [masked_batch([width, width - 5], device) for width in (100, 200, 300, 400, 100, 300)]
    for batch in batches:
        assert close(called.hidden(*arguments(batch)), model(*arguments(batch), hidden_only=True))
    assert [shape[0] for shape in called.graphs] == [ROWS, 2 * ROWS]


@only_on_a_gpu
def test_results_do_not_depend_on_which_shapes_were_captured(model: MaskedLanguageModel, device: str) -> None:
    batch = masked_batch(SHORTER, device)
    replayed, eager = (captured(model, limit).hidden(*arguments(batch)) for limit in (LIMIT, 0))
    assert torch.equal(replayed, eager)


def test_weights_changed_in_place_are_seen(model: MaskedLanguageModel, device: str) -> None:
    called, given = captured(model), arguments(masked_batch(SHORTER, device))
    before = called.hidden(*given)
    with torch.no_grad():
        model.transform.weight.mul_(-1.0)
        model.encoder.embedding.weight.add_(0.1)
    after = called.hidden(*given)
    assert len(called.graphs) == 1 and not close(before, after)
    assert close(after, model(*given, hidden_only=True))


def test_no_temperature_captures_anew(model: MaskedLanguageModel, device: str) -> None:
    called, batch = captured(model), masked_batch(SHORTER, device)
    through, plain = Temperature(called, 1), Temperature(model, 1)
    for value in torch.linspace(2.0, 1.0, 21).tolist():
        found, expected = through.sample(batch, value), plain.sample(batch, value)
        assert float((found.tokens_M != expected.tokens_M).float().mean()) < 0.05  # ties of rounding
        assert found.entropy_M is not None and torch.allclose(found.entropy_M, expected.entropy_M, rtol=1e-3)
    assert len(called.graphs) == 1


def test_dropped_tokens_are_replayed_and_dropped_activations_are_not(model: MaskedLanguageModel, device: str) -> None:
    called, batch = captured(model), masked_batch(SHORTER, device)
    for kind, graphs in ((Dropout, 0), (DropToken, 1)):
        found, expected = kind(called, 1).hidden(batch, 0.3), kind(model, 1).hidden(batch, 0.3)
        assert close(found, expected) and len(called.graphs) == graphs


def test_a_profiler_sees_the_modules_called(model: MaskedLanguageModel, device: str) -> None:
    """A replay calls no module, and the auxiliary would seem to cost nothing."""
    called, given = captured(model), arguments(masked_batch(SHORTER, device))
    called.hidden(*given)
    plain = forward_flops({"auxiliary": model}, lambda: model(*given, hidden_only=True))
    assert plain["auxiliary"] > 0
    assert forward_flops({"auxiliary": model}, lambda: called.hidden(*given)) == plain
    assert not called._hooked()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_in_16_bit_and_in_deepspeeds_engine(dtype: str) -> None:
    model = MaskedLanguageModel(SIZES, seed=7).cuda()
    engine = inference_engine(model, dtype)
    for seed in range(3):
        given = arguments(masked_batch(SHORTER, "cuda", seed))
        found, expected = engine.hidden(*given), model(*given, hidden_only=True)
        assert found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), atol=0.1)
    assert len(engine.graphs) == 1
