"""The type that a simulator computes its update in: float32 at least, unless somebody asks for less and is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny_models
import torch
from command import STORY, Command, model_folder

import tintc

IDS = tiny_models.token_ids(1, 16, vocab=23)
LEAST = 0.9999
"""Cosine that two updates in float32 have at least; that of bfloat16 stays below 0.99 at this rate."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16."""
    made = tiny_models.llama(n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=12, vocab=23).bfloat16()
    return model_folder(tmp_path_factory.mktemp("bf16") / "model", made)


@pytest.fixture(scope="module")
def short(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulator of it that is stored in bfloat16, as earlier versions made them."""
    out = tmp_path_factory.mktemp("short") / "sim"
    tintc.compile(model, inner_lr=1e-4, dtype="bfloat16", output=out)
    return out


def update(sim: tintc.TintForCausalLM) -> torch.Tensor:
    """What a pass adds to the logits, flat, fp64."""
    with torch.no_grad():
        out = sim(IDS, return_before=True)
    assert out.logits is not None and out.logits_before is not None
    return (out.logits.double() - out.logits_before.double()).flatten()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def test_a_bf16_checkpoint_gets_an_update_in_fp32(model: Path, short: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same as in fp64, to a cosine of 0.9999; what is stored in bf16 has it when it is loaded in fp32."""
    with caplog.at_level(logging.WARNING, "tintc"):
        sim, right = tintc.compile(model, inner_lr=1e-4), update(tintc.compile(model, inner_lr=1e-4, dtype="float64"))
        mended = tintc.load(short, dtype="float32")
    assert not caplog.records and (sim.dtype, mended.dtype) == (torch.float32, torch.float32)
    assert cosine(update(sim), right) > LEAST and cosine(update(mended), right) > LEAST
    assert cosine(update(tintc.load(short)), right) < 0.99


def test_bf16_is_warned_of_once(model: Path, short: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However the simulator comes about, with what mends it."""
    makes = {
        "stored": lambda: tintc.load(short),
        "converted": lambda: tintc.load(short, dtype=torch.bfloat16),
        "in memory": lambda: tintc.compile(model, dtype="bfloat16"),
        "to a folder": lambda: tintc.compile(model, dtype="bfloat16", output=tmp_path / "sim"),
    }
    for how, make in makes.items():
        caplog.clear()
        update(make())
        (record,) = [one for one in caplog.records if one.name == "tintc"]
        assert record.levelno == logging.WARNING, how
        assert "computes in bfloat16" in record.getMessage() and "dtype='float32'" in record.getMessage(), how


def test_compile_says_what_bf16_costs(command: Command, model: Path, tmp_path: Path) -> None:
    plain = command("compile", model, "-o", tmp_path / "plain", "--json")
    assert (plain.json["dtype"], plain.err) == ("float32", "")
    asked = command("compile", model, "-o", tmp_path / "asked", "--dtype", "bfloat16", "--json")
    assert asked.json["dtype"] == "bfloat16" and asked.err.startswith("warning: this simulator computes in bfloat16")
    assert len(asked.err.splitlines()) == 1
    quiet = command("--quiet", "compile", model, "-o", tmp_path / "quiet", "--dtype", "bfloat16", "--json")
    assert (quiet.json["dtype"], quiet.err) == ("bfloat16", "")


def test_verify_finds_an_update_that_points_elsewhere(command: Command, model: Path, short: Path) -> None:
    """In bf16; the same folder passes in fp32."""
    found = command("verify", short, model, "--length", 16, "--json")
    assert found.code == 1 and found.json["update_cosine"] < 0.99
    (problem,) = found.json["problems"]
    assert "the update of the logits points elsewhere" in problem and "--dtype float32" in problem
    mended = command("verify", short, model, "--length", 16, "--dtype", "float32", "--json")
    assert mended.code == 0 and mended.json["update_cosine"] > LEAST and mended.json["dtype"] == "float32"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_commands_convert(command: Command, short: Path, dtype: str) -> None:
    """`run` and `generate` compute in the type that they are told: perplexity to 1e-5 of Python's, the same tokens."""
    ran = command("run", short, "--text", STORY, "--block-size", 16, "--max-blocks", 1, "--dtype", dtype, "--json")
    assert ran.code == 0 and ran.err == "", ran.err
    sim = tintc.load(short, dtype=dtype)
    ids = sim.tokenizer(STORY, return_tensors="pt").input_ids[:, :16]
    with torch.no_grad():
        logits = sim(ids).logits
    wanted = torch.nn.functional.cross_entropy(logits[0, 7:-1], ids[0, 8:]).exp()
    assert ran.json["perplexity_after"] == pytest.approx(float(wanted), rel=1e-5)
    prompt = " ".join(STORY.split()[:8])
    made = command("generate", short, "--text", prompt, "--max-new-tokens", 4, "--dtype", dtype, "--json")
    assert made.code == 0 and made.err == "", made.err
    assert made.json["ids"] == sim.generate(ids[:, :8], max_new_tokens=4, do_sample=False)[0, 8:].tolist()


def test_the_stored_train_fraction_is_the_commands(command: Command, short: Path, model: Path) -> None:
    sim = tintc.load(short, dtype="float32")
    sim.config.train_fraction = 0.75
    sim.save_pretrained(short.parent / "other")
    given = ("--text", STORY, "--block-size", 16, "--json")
    assert command("run", short.parent / "other", *given).json["train_tokens"] == 12
    assert command("run", short.parent / "other", *given, "--train-fraction", 0.25).json["train_tokens"] == 4
    found = command("verify", short.parent / "other", model, "--length", 16, "--json").json
    assert (found["tokens"], found["train_tokens"]) == (16, 12)
