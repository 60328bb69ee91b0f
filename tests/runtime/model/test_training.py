"""Training a simulator from outside: losses, `Trainer`, plain loops; saved, loaded and run again.

fp32 unless said otherwise. A loss falls if it ends below 0.9 of where it began (all parameters: 0.98), on the text
trained on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import gpt2, token_ids
from transformers import Trainer, TrainingArguments

import tintc
from tintc.errors import OptionError
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.training import next_token_loss

TEXTS = token_ids(1, 10, vocab=19).expand(4, 10)
ROWS: Any = [{"input_ids": row, "labels": row} for row in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "sim"
    tintc.compile(gpt2(n_layers=1, n_heads=2, head_dim=4, vocab=19), inner_lr=0.01).save_pretrained(out)
    return out


def loss_of(sim: TintForCausalLM) -> float:
    with torch.no_grad():
        return float(sim(TEXTS, labels=TEXTS).loss)


def train(sim: TintForCausalLM, out: Path, **options: Any) -> Trainer:
    """Eight steps of `Trainer`, if not told otherwise."""
    given = {"max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 0.1, "save_strategy": "no"}
    fixed = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 4}
    trainer = Trainer(sim, TrainingArguments(str(out), **(given | fixed | options)), train_dataset=ROWS)
    trainer.train()
    return trainer


def changed(sim: TintForCausalLM, folder: Path) -> set[str]:
    """Kinds of tensors that are not what the folder holds."""
    stored = tintc.load(folder).state_dict()
    return {
        name.partition(".")[0] for name, tensor in sim.state_dict().items() if not torch.equal(tensor, stored[name])
    }


def test_trainer_trains_prefixes_and_rates_fused(folder: Path, tmp_path: Path) -> None:
    """Without the structural tensors, which nobody has to hold for it; what is saved runs fused again."""
    sim = tintc.load(folder).trainable("prefixes", "rates")
    before = loss_of(sim)
    train(sim, tmp_path / "out", save_strategy="steps", save_steps=8)
    assert sim.last_executor == "fused"
    after = loss_of(sim)
    assert after < 0.9 * before
    assert changed(sim, folder) == {"prefixes", "rates"}
    again = tintc.load(tmp_path / "out" / "checkpoint-8")
    assert loss_of(again) == pytest.approx(after, rel=1e-6) and again.last_executor == "fused"


def test_trainer_trains_every_parameter_literally(folder: Path, tmp_path: Path) -> None:
    """In small steps, which structural tensors bear. What is saved is not the compiler's own, so it runs literally."""
    sim = tintc.load(folder, executor="literal").trainable()
    before = loss_of(sim)
    trainer = train(sim, tmp_path / "out", learning_rate=2e-4, max_steps=5)
    after = loss_of(sim)
    assert after < 0.98 * before
    assert changed(sim, folder) >= {"prefixes", "rates", "tables", "structure"}
    trainer.save_model(str(tmp_path / "trained"))
    again = tintc.load(tmp_path / "trained")
    assert loss_of(again) == pytest.approx(after, rel=1e-6) and again.last_executor == "literal"
    assert "literally only" in (tmp_path / "trained" / "README.md").read_text()


def test_a_plain_loop(folder: Path) -> None:
    sim = tintc.load(folder).trainable("prefixes", "rates").train()
    optimizer, losses = torch.optim.Adam(sim.parameters(), lr=0.1), []
    for _ in range(6):
        optimizer.zero_grad()
        loss = sim(TEXTS, labels=TEXTS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert sim.last_executor == "fused"
    assert losses[-1] < 0.9 * losses[0]


def test_accumulated_gradients_are_those_of_one_batch(folder: Path, tmp_path: Path) -> None:
    """`Trainer` divides by the labels of all the parts, of which one has none of its text's first half."""
    rows = [dict(row) for row in ROWS]
    rows[0]["labels"] = torch.where(torch.arange(10) < 5, -100, rows[0]["labels"])
    found = []
    for parts in (1, 4):
        sim = tintc.load(folder, dtype="float64").trainable("prefixes")
        options = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        sizes = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
        fixed: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        Trainer(sim, TrainingArguments(str(tmp_path), **options, **sizes, **fixed), train_dataset=rows).train()  # pyright: ignore
        found.append(sim.state_dict())
    assert all(torch.allclose(tensor, found[1][name], rtol=1e-12, atol=1e-14) for name, tensor in found[0].items())


def test_auto_says_why_it_trains_literally(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Structural tensors get the gradients that they require."""
    sim = tintc.load(folder).trainable()
    parameters = dict(sim.named_parameters())
    with caplog.at_level(logging.WARNING, "tintc"):
        sim(TEXTS, labels=TEXTS).loss.backward()
    assert sim.last_executor == "literal" and "sim.trainable('prefixes', 'rates')" in caplog.text
    structure = [tensor for name, tensor in parameters.items() if name.startswith("structure.")]
    assert any(tensor.grad is not None and bool(tensor.grad.any()) for tensor in structure)
    loss_of(sim)
    assert sim.last_executor == "fused"
    sim.requires_grad_(False)
    sim(TEXTS)
    assert sim.last_executor == "fused"


def test_what_is_trained_asks_for_gradients(folder: Path) -> None:
    """A simulator begins with all but its structure; ``sim.structure`` can still be edited."""
    sim = tintc.load(folder)
    assert asking(sim) == {"tables", "prefixes", "rates"}
    assert asking(sim.trainable("prefixes", "rates")) == {"prefixes", "rates"}
    with torch.no_grad():
        next(iter(sim.structure.parameters())).add_(1)
    loss_of(sim)
    assert sim.last_executor == "literal"
    everything = tintc.load(folder).trainable("rates").trainable()
    assert all(parameter.requires_grad for parameter in everything.parameters())
    with pytest.raises(OptionError, match="'weights' is unknown; choose of tables, prefixes"):
        sim.trainable("weights")
    with pytest.warns(DeprecationWarning, match="'rotary' is called 'score_vectors' now"):
        assert asking(sim.trainable("rates", "rotary")) == {"rates"}, "this model has no score vectors"


def asking(sim: TintForCausalLM) -> set[str]:
    """Kinds of parameters that require gradients."""
    return {name.partition(".")[0] for name, parameter in sim.named_parameters() if parameter.requires_grad}


def test_edited_structure_is_frozen_and_kept(folder: Path) -> None:
    sim = tintc.load(folder)
    with torch.no_grad():
        next(iter(sim.structure.parameters())).add_(1)
    sim.trainable("prefixes")
    assert not any(parameter.requires_grad for parameter in sim.structure.parameters())
    sim(TEXTS, labels=TEXTS).loss.backward()
    assert sim.last_executor == "literal"
    trained = [parameter.grad for name, parameter in sim.named_parameters() if name.startswith("prefixes.")]
    assert any(gradient is not None and bool(gradient.any()) for gradient in trained)


def test_the_loss_is_transformers_own(folder: Path) -> None:
    """fp64, to 1e-6 (transformers' is computed in fp32): shifted, -100 ignored, divided by what `Trainer` counts."""
    sim = tintc.load(folder, dtype="float64")
    labels = torch.where(torch.arange(10) % 3 == 0, -100, TEXTS)
    with torch.no_grad():
        out = sim(TEXTS, labels=labels)
        scaled = sim(TEXTS, labels=labels, num_items_in_batch=torch.tensor(7)).loss
        plain = sim(TEXTS, labels=labels, return_dict=False)
    right = sim.loss_function(out.logits, labels, vocab_size=19)
    assert float(out.loss) == pytest.approx(float(right), rel=1e-6)
    right = sim.loss_function(out.logits, labels, vocab_size=19, num_items_in_batch=7)
    assert float(scaled) == pytest.approx(float(right), rel=1e-6)
    assert isinstance(plain, tuple) and torch.equal(plain[0], out.loss) and torch.equal(plain[1], out.logits)
    assert next_token_loss(out.logits, torch.full_like(labels, -100), 3) == 0


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_autocast_changes_nothing(folder: Path, executor: str) -> None:
    """Bit for bit, with gradients and without, for states too: its finite differences keep their precision."""
    sim, found = tintc.load(folder, executor=executor), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            recorded = sim(TEXTS, labels=TEXTS)
            with torch.no_grad():
                found.append([recorded.loss, recorded.logits, sim(TEXTS).logits])
                sim.executor = "fused"
                found[-1].append(sim(TEXTS, state=sim.adapt(TEXTS)).logits)
                sim.executor = executor
    assert all(torch.equal(plain, cast) for plain, cast in zip(*found, strict=True))


def test_evaluation_by_trainer(folder: Path, tmp_path: Path) -> None:
    sim = tintc.load(folder)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, bf16=True)
    found = Trainer(sim, arguments, eval_dataset=ROWS).evaluate()
    assert found["eval_loss"] == pytest.approx(loss_of(sim), rel=1e-5)
