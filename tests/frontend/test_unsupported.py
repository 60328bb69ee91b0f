"""A model that no rule covers is refused with every place and a reason for each, printed once for equal layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nano_gpt import NanoGPT

from tintc.errors import ModelError, Reason, UnsupportedModelError, fold
from tintc.folding import folded
from tintc.frontend.graph.obstacle_words import (
    ACTIVATION,
    DEPENDENT_SIZES,
    DYNAMIC_MASK,
    EXPERTS,
    LOOPED_EXPERTS,
    STREAMS,
    TOKEN_LOOP,
    TWO_WAY,
    UNKNOWN,
)
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tools.sweep.tiny import tiny_model


def test_every_place_is_listed_with_its_reason() -> None:
    model: Any = NanoGPT()
    for block in model.blocks:
        block.mlp[1].forward = torch.sin
    model.ln_f.forward = lambda x: x.cumsum(1)
    with pytest.raises(UnsupportedModelError) as error:
        import_graph(capture(model))
    found = {reason.where: reason.why for reason in error.value.reasons}
    assert set(found) == {"ln_f", "blocks.0.mlp.1", "blocks.1.mlp.1"}
    assert "none of the known activations" in found["blocks.0.mlp.1"]
    assert found["ln_f"] == "no rule takes this operation"
    lines = str(error.value).splitlines()
    assert "3 places" in lines[0] and len(lines) == 3, "the same in several layers is one line"
    assert lines[2].startswith("  - aten.sin in blocks.0-1.mlp.1: this function is none of")


def test_places_are_folded_only_where_nothing_is_lost() -> None:
    """Every combination of the numbers is among the places, and reasons that name their own layer are alike."""
    paths = [f"layers.{layer}.experts.{expert}.up" for layer in range(3) for expert in range(4)]
    assert folded([*paths, "layers.4.experts.2.up", "norm"]) == [
        "layers.0-2.experts.0-3.up",
        "layers.4.experts.2.up",
        "norm",
    ]
    assert folded(["a.5.b", "a.0.b", "a.1.b", "a.1.c", "7"]) == ["a.0-1,5.b", "a.1.c", "7"]
    reasons = [Reason("aten.bmm", f"h.{layer}", f"it comes from h.{layer}.q, not 0.{layer}") for layer in (1, 1, 2)]
    assert fold(reasons) == [str(reasons[0]), str(reasons[2])], "0.1 and 0.2 are not places"
    assert fold([Reason("aten.bmm", f"h.{n}", f"it is of h.{n}.q") for n in (1, 2)]) == [
        "aten.bmm in h.1-2: it is of h.*.q"
    ]


def test_a_model_that_takes_its_cache_from_its_configuration_is_captured_without_one() -> None:
    """The configuration is left as it was."""
    model = tiny_model("granitemoe", num_hidden_layers=1)
    assert import_graph(capture(model)).outputs
    assert model.config.use_cache is True


def test_queries_that_do_not_depend_on_the_tokens_are_refused_in_words() -> None:
    model = tiny_model("opt", num_hidden_layers=1)
    attention = model.model.decoder.layers[0].self_attn
    width = attention.q_proj.out_features
    attention.q_proj.forward = lambda x: torch.ones(*x.shape[:-1], width)
    with pytest.raises(UnsupportedModelError, match=r"q: it comes from \S+ and does not depend on the tokens"):
        import_graph(capture(model))


def test_a_loop_over_the_experts_that_are_chosen_is_refused_in_words() -> None:
    """Experts that transformers' interface does not compute, for some of them have no weights."""
    with pytest.raises(UnsupportedModelError) as refused:
        capture(tiny_model("longcat_flash", num_layers=1), name="one")
    assert refused.value.obstacles == (LOOPED_EXPERTS,)
    assert str(refused.value) == (
        f"one cannot be compiled: it has {LOOPED_EXPERTS}, which tintc does not support; it reads experts that "
        "transformers' interface for experts computes, and dense products with all."
    )


class Looking(torch.nn.Module):
    """A module whose path depends on what the tokens are."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_model("llama").config
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.weight * (1 if input_ids.sum() > 3 else 2)


def test_what_cannot_be_captured_is_said_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch prints the graph that it has got so far; nobody asked for it."""
    with pytest.raises(ModelError, match=f"Looking cannot be compiled: it has {DEPENDENT_SIZES}, which") as refused:
        capture(Looking())
    assert len(str(refused.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


LAYERS: dict[str, dict[str, int]] = {"gemma3n_text": {}, "rwkv": {}}
"""Types that need more than one layer."""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("doge", f"it has {DYNAMIC_MASK}, which"),
        ("bert-generation", f"it has {TWO_WAY}, which"),
        ("rwkv", f"it has {TOKEN_LOOP}, which"),
        ("jetmoe", f"it has {EXPERTS}, which"),
        pytest.param("gemma3n_text", f"it has {STREAMS}", marks=pytest.mark.slow),  # and more; half a minute
    ],
)
def test_the_obstacle_comes_first_and_in_words(kind: str, words: str) -> None:
    """In the first line; the operations stand below it."""
    with pytest.raises(UnsupportedModelError) as refused:
        import_graph(capture(tiny_model(kind, **LAYERS.get(kind, {"num_hidden_layers": 1}))))
    first, *others = str(refused.value).splitlines()
    assert words in first and "aten." not in first
    assert len(others) == len(fold(refused.value.reasons))


def refusal(activation: Any) -> UnsupportedModelError:
    model: Any = NanoGPT(n_layers=1)
    model.blocks[0].mlp[1].forward = activation
    with pytest.raises(UnsupportedModelError) as refused:
        import_graph(capture(model))
    return refused.value


def test_a_function_that_is_not_known_is_called_an_activation_where_it_is_all_there_is() -> None:
    assert refusal(torch.erf).obstacles == (ACTIVATION,)
    assert refusal(lambda x: torch.sin(x).sort(1).values).obstacles == (f"{UNKNOWN} (getitem)",)
