"""Ways in which a simulator is cast, edited or handed over, each of which once went wrong silently."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import gpt2, llama

import tintc
from tintc.errors import ArtefactError, InputError, IRError, OptionError, TintcError
from tintc.ir.functions import rotate
from tintc.ir.text import parse_program
from tintc.lowering.passes.plan_layout import layout_of
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = torch.arange(2 * 8).reshape(2, 8) % 7


def compiled() -> TintForCausalLM:
    return tintc.compile(gpt2(n_layers=1))


@pytest.fixture
def folder(one_layer_sim: Path, tmp_path: Path) -> Path:
    """A folder that the test may change."""
    return Path(shutil.copytree(one_layer_sim, tmp_path / "sim"))


def test_terms_the_construction_leaves_out_count_as_structure() -> None:
    sim = compiled()
    assert sim.choose_executor() == "fused"
    sim.get_buffer("structure.linear_backward.p_q").data.add_(1)
    assert sim.choose_executor() == "literal"


def test_a_replaced_module_counts_as_an_edit() -> None:
    sim = compiled()
    block: Any = sim.get_submodule("structure.linear_backward")
    block.w_q = torch.nn.Identity()
    assert sim.choose_executor() == "literal"


def test_a_cast_simulator_is_still_the_compilers_own_after_saving(tmp_path: Path) -> None:
    sim = tintc.compile(gpt2(n_layers=1).double())
    sim.to(torch.float32).save_pretrained(tmp_path / "cast")
    assert tintc.load(tmp_path / "cast").choose_executor() == "fused"


def test_rates_and_frequencies_keep_fp32() -> None:
    sim = tintc.compile(llama(n_layers=1).float()).to(torch.bfloat16)
    kept = {name: p.dtype for name, p in sim.named_parameters() if name.startswith(("rates.", "score_vectors."))}
    assert kept and set(kept.values()) == {torch.float32}
    assert sim.dtype == torch.bfloat16


def test_rotation_tells_late_positions_apart_in_bf16() -> None:
    x, at = torch.randn(1, 1, 4, 8), torch.tensor([[1000, 1001, 1499, 1500]])
    frequencies = torch.tensor([1.0, 0.1])
    exact = rotate(x.double(), at, frequencies, "half")
    assert torch.allclose(rotate(x.bfloat16(), at, frequencies, "half").double(), exact, atol=0.05)


def test_half_precision_models_compile_to_fp32() -> None:
    assert tintc.compile(gpt2(n_layers=1).half()).dtype == torch.float32


def test_an_edited_step_is_not_run_with_the_old_tensors(folder: Path) -> None:
    text = (folder / "program.tint").read_text()
    assert "fd_step=0.001" in text
    (folder / "program.tint").write_text(text.replace("fd_step=0.001", "fd_step=0.01"))
    with pytest.raises(ArtefactError, match="lacks"):
        tintc.load(folder)


def test_a_program_without_layout_says_so() -> None:
    with pytest.raises(IRError, match="no layout"):
        layout_of(parse_program("sim.program {}\n"))


def test_mistakes_in_the_call_are_said() -> None:
    sim = compiled()
    with pytest.raises(InputError, match="no argument 'learning_rate'"):
        sim(IDS, learning_rate=3)
    with pytest.raises(InputError, match="labels"):
        sim(IDS, labels=IDS[:, :4])
    with pytest.raises(OptionError, match="finite"):
        sim(IDS, inner_lr=float("nan"))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("return logits = ", "// return logits = ", "lacks the output logits"),
        (", n_steps=1", "", "lacks the attribute n_steps"),
        ("parameter @transformer.ln_f.bias", "// parameter @transformer.ln_f.bias", "does not fit|does not declare"),
        ("sim.program", "aux.program", "dialect|does not belong"),
    ],
)
def test_a_damaged_program_is_refused(folder: Path, old: str, new: str, sentence: str) -> None:
    file = folder / "program.tint"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(TintcError, match=sentence):
        tintc.load(folder)
