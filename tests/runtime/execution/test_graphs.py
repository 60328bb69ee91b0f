"""Passes and decoding steps that are recorded once and replayed: the same results, of every kind of simulator.

Where there is no GPU, a list of the operators stands for a CUDA graph (`twin_graphs`). fp64, 1e-9 of the update.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_programs import decoder
from fake_gpu import GPU, NoHostMemory, Waits, fake_gpu, fake_inputs, on_fake_gpu
from programs import gpt_like, hybrid_like, llama_like, mixture_like, relative_to_update, simulator
from tiny_models import token_ids
from torch import Tensor
from twin_graphs import TwinRecording, twins

from tintc.errors import InputError, OptionError
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import base_weights, stored_weights
from tintc.runtime.adaptation.continued_run import ContinuedRun
from tintc.runtime.adaptation.decoding_graph import DecodingGraph
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.execution import memory
from tintc.runtime.execution.fused import graphs
from tintc.runtime.execution.fused.pass_graph import Bucket, PassGraph
from tintc.runtime.model.causal_lm import TintForCausalLM

VOCAB = 11
KINDS: dict[str, Callable[[], TintForCausalLM]] = {
    "gpt2": lambda: written(gpt_like),
    "llama": lambda: written(llama_like),
    "all of attention": lambda: written(
        decoder, layers=1, window=3, soft_cap=2.0, slopes=(0.5, 0.25, 0.125), sunk=True
    ),
    "experts": lambda: written(mixture_like, layers=1, chosen=2, normalise="sum", biases=True),
    "delta rule": lambda: written(hybrid_like, key_heads=2, delta=True, unit_eps=1e-6),
    "state space": lambda: written(hybrid_like, key_heads=1, by_coordinate=True, skip=True),
}
PADDING = torch.tensor([[1] * 7, [0] * 2 + [1] * 5])


def written(make: Callable[..., Any], **options: Any) -> TintForCausalLM:
    return simulator(*make(**options), inner_lr=0.02, n_steps=2)


@pytest.fixture
def recorded() -> Iterator[type[TwinRecording]]:
    with twins() as kind, torch.no_grad():
        yield kind


def fused(name: str) -> TintForCausalLM:
    sim = KINDS[name]()
    sim.executor = "fused"
    sim.graphs.clear()
    return sim


@pytest.fixture
def sim(recorded: Any) -> Iterator[TintForCausalLM]:
    """One whose graphs are dropped in the end, as others use it too."""
    shared = fused("llama")
    yield shared
    shared.graphs.clear()
    shared.graphs.enabled = True
    shared.executor = "auto"


def same(got: Any, wanted: Any) -> None:
    before = wanted.logits_before
    assert relative_to_update(got.logits, wanted.logits, before) < 1e-9
    assert relative_to_update(got.logits_before, before, wanted.logits) < 1e-9


@pytest.mark.parametrize("name", [name for name in KINDS if name != "llama"])
def test_a_bucket_serves_what_fits(name: str, recorded: type[TwinRecording]) -> None:
    """Fewer texts, tokens and train tokens, and padding; one graph after the other, whose results stay."""
    sim = fused(name)
    texts = [token_ids(2, 7, VOCAB), token_ids(3, 9, VOCAB, seed=1)]
    given: list[dict[str, Any]] = [{}, {"train_mask": torch.arange(9).expand(3, -1) % 5 < 3}]
    wanted = [sim(ids, return_before=True, **more) for ids, more in zip(texts, given, strict=True)]
    padded = sim(texts[0], attention_mask=PADDING, return_before=True)
    sim.warm_up(3, 9, 8, return_before=True)
    sim.warm_up(2, 8, 5, return_before=True, padded=True)
    assert len(sim.graphs) == 2 and recorded.replays == 0
    got = [sim(ids, return_before=True, **more) for ids, more in zip(texts, given, strict=True)]
    assert recorded.replays == 2
    same(sim(texts[0], attention_mask=PADDING, return_before=True), padded)
    assert recorded.replays == 3
    for ours, theirs in zip(got, wanted, strict=True):
        same(ours, theirs)
    sim.graphs.clear()


def test_rates_are_read_where_they_are(sim: TintForCausalLM, recorded: type[TwinRecording]) -> None:
    """Given ones, of every example or of some layers, and the stored as they are at each replay."""
    ids = token_ids(2, 8, VOCAB)
    every, some = torch.tensor([[0.01, 0.03]]), {1: 0.05, "default": 0.01}
    wanted = [sim(ids, inner_lr=rates, return_before=True) for rates in (every, some, 0.04)]
    sim.warm_up(2, 8, inner_lr=0.5, return_before=True)
    sim.warm_up(2, 8, inner_lr={1: 0.5, "default": 0.5}, return_before=True)
    for rates, right in zip((every, some, 0.04), wanted, strict=True):
        same(sim(ids, inner_lr=rates, return_before=True), right)
    assert recorded.replays == 3
    sim.warm_up(2, 8, return_before=True)
    name = "h.1.ffn.up"
    kept = sim.rate(name).clone()
    sim.rate(name).mul_(3)
    got = sim(ids, return_before=True)
    assert recorded.replays == 4
    sim.graphs.enabled = False
    same(got, sim(ids, return_before=True))
    sim.rate(name).copy_(kept)


def test_what_no_graph_serves_runs_without(sim: TintForCausalLM, recorded: type[TwinRecording]) -> None:
    sim.warm_up(2, 12, 6)
    sim.warm_up(2, 12, 6, logits_to_keep=2)
    ids, mask = token_ids(2, 12, VOCAB), torch.ones(2, 12, 12)
    mask[:, 5:, 0] = 0
    assert sim(ids, logits_to_keep=2).logits.shape[1] == 2 and recorded.replays == 1
    sim(ids[:, :11], logits_to_keep=2)
    sim(token_ids(3, 12, VOCAB))
    sim(token_ids(2, 13, VOCAB))
    sim(ids[:, :5])  # fewer than half of its tokens
    sim(ids, train_mask=torch.ones(2, 12))
    sim(ids, train_mask=torch.ones(2, 2, 12))
    sim(ids, attention_mask=mask)
    sim(ids, inner_lr=0.1)
    sim(ids, return_before=True)
    sim(ids, output_hidden_states=True)
    with sim.edit({"pass0.layers.0.residual": lambda x: x}):
        sim(ids)
    sim.update = "lazy"
    sim(ids)
    sim.update = "auto"
    with torch.enable_grad():
        assert sim(ids).logits.requires_grad
    sim.executor = "literal"
    sim(ids)
    assert recorded.replays == 1


def test_graphs_end_where_weights_move_or_cast(sim: TintForCausalLM, recorded: type[TwinRecording]) -> None:
    """Numbers that change where they are do not end them."""
    mine = copy.deepcopy(sim)
    ids = token_ids(2, 8, VOCAB)
    mine.warm_up(2, 8, return_before=True)
    assert len(copy.deepcopy(mine).graphs) == 0
    weight: Any = mine.prefix("h.1.ffn.up").weight
    weight.mul_(1.5)
    replayed = mine(ids, return_before=True)
    assert recorded.replays == 1
    weight.data = weight.data.clone()
    same(replayed, mine(ids, return_before=True))
    assert recorded.replays == 1 and len(mine.graphs) == 0
    mine.warm_up(2, 8)
    mine.to(torch.float32)
    assert mine(ids).logits.dtype == torch.float32 and len(mine.graphs) == 0


def test_one_switch(sim: TintForCausalLM, recorded: type[TwinRecording], monkeypatch: pytest.MonkeyPatch) -> None:
    sim.warm_up(1, 6)
    ids = token_ids(1, 6, VOCAB)
    sim.graphs.enabled = False
    sim(ids)
    sim.warm_up(1, 7, new_tokens=1)
    assert len(sim.graphs) == 1 and recorded.replays == 0
    sim.graphs.enabled = True
    with torch.inference_mode():
        sim(ids)
    assert recorded.replays == 1
    monkeypatch.setenv(graphs.VARIABLE, "off")
    assert not graphs.Graphs().enabled
    monkeypatch.setenv(graphs.VARIABLE, "yes")
    with pytest.raises(OptionError, match="set it to on or off"):
        graphs.Graphs()


def test_other_kernels_are_other_graphs(sim: TintForCausalLM, recorded: type[TwinRecording]) -> None:
    from tintc.ir.simulator.kernels.choice import using

    sim.warm_up(1, 6)
    with using("triton"):
        sim(token_ids(1, 6, VOCAB))
    assert recorded.replays == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"length": 1.5}, "length is 1.5"),
        ({"train": 9}, "train is 9, more than the 8"),
        ({"new_tokens": -1}, "new_tokens is -1"),
        ({"logits_to_keep": True}, "logits_to_keep is True"),
    ],
)
def test_sizes_that_are_none(given: dict[str, Any], says: str, sim: TintForCausalLM) -> None:
    given = dict(given)
    with pytest.raises(OptionError, match=says):
        sim.warm_up(given.pop("batch", 2), given.pop("length", 8), **given)
    with pytest.raises(InputError, match="at most"):
        sim.warm_up(1, 8, new_tokens=10_000)


def test_what_graphs_hold_is_not_planned_with(sim: TintForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 30)
    sim.plans.clear()
    sim.graphs.held = 1 << 30
    with pytest.raises(InputError, match="GB can be used"):
        sim(token_ids(2, 8, VOCAB))


def test_how_cuda_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """After runs on a stream of its own, into the pool that it is given; nothing runs anew in a replay."""
    log: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        log.append(name)
        yield
        log.append(f"end of {name}")

    stream = SimpleNamespace(wait_stream=lambda other: log.append("wait"))
    graph = SimpleNamespace(replay=lambda: log.append("replay"))
    for name, value in {
        "CUDAGraph": lambda: graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "device": lambda device: noted(str(device)),
        "stream": lambda aside: noted("aside"),
        "graph": lambda graph, pool, stream, capture_error_mode: noted(f"capture into {pool}, {capture_error_mode}"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    recording = graphs.CudaRecording(lambda: log.append("run"), torch.device("cuda", 1), "the pool")
    recording.replay()
    before = ["cuda:1", "wait", "aside", *["run"] * graphs.WARM_RUNS, "end of aside", "wait"]
    capture = "capture into the pool, thread_local"
    assert log == [*before, capture, "run", f"end of {capture}", "end of cuda:1", "replay"]


def generate(sim: TintForCausalLM, ids: Tensor, **given: Any) -> Any:
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    return sim.generate(ids, return_dict_in_generate=True, **(options | given))


def as_without(sim: TintForCausalLM, got: Any, ids: Tensor, **given: Any) -> None:
    """Fail unless a generation is that without graphs, 1e-12 of the logits."""
    sim.graphs.enabled = False
    wanted = generate(sim, ids, **given)
    sim.graphs.enabled = True
    assert torch.equal(got.sequences, wanted.sequences)
    for ours, theirs in zip(got.logits, wanted.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["all of attention", "experts", "delta rule"])
def test_new_tokens(name: str, recorded: type[TwinRecording]) -> None:
    """Prompts of other lengths and other states by one graph, with padding and without; none beyond its room."""
    sim = fused(name)
    sim.warm_up(2, 9, new_tokens=5)
    for length, given in ((9, {}), (7, {"attention_mask": PADDING}), (8, {})):
        ids = token_ids(2, length, VOCAB, seed=length)
        before = recorded.replays
        got = generate(sim, ids, **given)
        assert recorded.replays == before + 3
        as_without(sim, got, ids, **given)
    before = recorded.replays
    ids = token_ids(2, 9, VOCAB)
    as_without(sim, generate(sim, ids, max_new_tokens=9), ids, max_new_tokens=9)
    assert recorded.replays == before + 5
    sim.graphs.clear()


def test_two_texts_in_turn(sim: TintForCausalLM, recorded: type[TwinRecording]) -> None:
    """The second takes the buffers over, and the first keeps what it has read; a copy goes its own way."""
    sim.warm_up(1, 8, new_tokens=6)
    texts = [token_ids(1, 8, VOCAB, seed=seed) for seed in (1, 2)]
    more = token_ids(1, 4, VOCAB, seed=3)

    def interleaved() -> list[Tensor]:
        pasts = [sim(ids, use_cache=True).past_key_values for ids in texts]
        logits = []
        for token in more.split(1, 1)[:3]:
            logits += [sim(token, past_key_values=past).logits for past in pasts]
        aside = copy.deepcopy(pasts[0])
        logits.append(sim(more[:, 3:], past_key_values=pasts[0]).logits)
        logits.append(sim(more[:, :1], past_key_values=aside).logits)
        aside.crop(-2)
        logits.append(sim(more[:, 2:3], past_key_values=aside).logits)
        logits.append(sim(more[:, 1:3], past_key_values=pasts[1]).logits)  # two at once, without a graph
        logits.append(sim(more[:, :1], past_key_values=pasts[1]).logits)
        return logits

    got = interleaved()
    assert recorded.replays == 10
    sim.graphs.enabled = False
    for ours, theirs in zip(got, interleaved(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


def test_branches_and_resets(sim: TintForCausalLM, recorded: type[TwinRecording]) -> None:
    """A branch of a cache keeps what it had while a graph goes on with the cache, and with other texts."""
    sim.warm_up(1, 8, new_tokens=6)
    ids, others = (token_ids(1, 8, VOCAB, seed=seed) for seed in (1, 2))
    more = token_ids(1, 4, VOCAB, seed=3)

    def apart() -> list[Tensor]:
        past = sim(ids, use_cache=True).past_key_values
        logits = [sim(more[:, :1], past_key_values=past).logits]
        branch = past.branched()
        logits.append(sim(more[:, 1:2], past_key_values=past).logits)
        later = sim(others, use_cache=True).past_key_values
        logits.append(sim(more[:, 2:3], past_key_values=later).logits)
        logits.append(sim(more[:, 3:], past_key_values=branch).logits)
        for layer in branch.layers:
            layer.reset()
        logits.append(sim(more[:, 1:2], past_key_values=later).logits)
        return logits

    before = recorded.replays
    got = apart()
    assert recorded.replays == before + 5
    sim.graphs.enabled = False
    for ours, theirs in zip(got, apart(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


def test_beams_and_other_batches(sim: TintForCausalLM, recorded: type[TwinRecording]) -> None:
    """Rows that change places are read in again; more rows for an example than were foreseen run without."""
    sim.warm_up(2, 8, new_tokens=5)
    ids = token_ids(2, 8, VOCAB)
    as_without(sim, generate(sim, ids, num_beams=2), ids, num_beams=2)
    assert recorded.replays == 0
    past = sim(ids, use_cache=True).past_key_values
    rows = torch.tensor([1, 0])
    found = []
    for enabled in (True, False):
        sim.graphs.enabled = enabled
        mine = copy.deepcopy(past)
        sim(ids[:, :1], past_key_values=mine)
        mine.batch_select_indices(rows)
        found.append(sim(ids[:, 1:2], past_key_values=mine).logits)
    assert recorded.replays == 2
    torch.testing.assert_close(*found, rtol=0, atol=1e-12 * float(found[1].abs().max()))


class OnFakeGPU:
    """Runs what would be captured where nothing may wait for values, or be made on the host."""

    def __init__(self, run: Callable[[], Any], device: torch.device, pool: Any):
        with NoHostMemory():
            self.results = run()


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graphs.RECORDINGS, "cuda", OnFakeGPU)
    for name, value in (("_places", ()), ("new_pool", None), ("_unused", 0)):
        monkeypatch.setattr(graphs, name, lambda sim, value=value: value)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 40)


@pytest.mark.parametrize("name", ["all of attention", "experts", "state space"])
def test_nothing_waits_in_a_capture(name: str, capturing: None) -> None:
    """Nor is anything made on the host: as little as in `test_no_waiting`, from the buffers of a graph."""
    sim = KINDS[name]()
    text = sim.resolve(token_ids(2, 6, VOCAB))
    assert text.plain and text.only_padding  # which is known before
    with fake_gpu():
        other = on_fake_gpu(sim)
        if name == "all of attention":
            graph = PassGraph(other, Bucket(2, 9, 4, ("logits_before", "logits"), padded=True), None)
            assert graph._recording.results["logits"].device == GPU
        tokens = fake_inputs(text)
        cache = TintCache(other.continuation.carrying)
        state: Any = AdaptedWeights(other, base_weights(other), 1, snapshot=object())  # pyright: ignore[reportArgumentType]
        ContinuedRun(other, tokens, tokens.position_ids).run(stored_weights(other) | base_weights(other), cache)
        cache.extend(tokens.position_ids, None)
        step = DecodingGraph(other, state, cache, 12)
        assert step._recording.results.shape == (2, 1, sim.config.vocab_size)


def test_what_a_capture_must_not_do_is_seen() -> None:
    with fake_gpu(), pytest.raises(Waits, match="on the host"), NoHostMemory():
        torch.zeros(())
