"""The three commands on tiny models: what they write, print and return."""

from __future__ import annotations

import io
import json
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command import ROOT, STORY, Command, Result, contents, finished, forked, model_folder
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from typer.main import get_command

import tintc
import tintc_cli
from tintc.errors import TintcError
from tintc.ir.text import parse_program


@pytest.fixture
def model(one_layer: Path) -> Path:
    return one_layer


@pytest.fixture
def compiled(one_layer_sim: Path) -> Path:
    return one_layer_sim


def test_compile_run_inspect(command: Command, two_layers: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "sim"
    options = ("--steps", 2, "--update-layers", 1, "--lr", 1e-2, "--max-length", 24, "--fd-step", 1e-3)
    options = (*options, "--loss", "mse", "--descend", "values,out,norm-gain")
    made = command("compile", two_layers, "-o", out, *options, "--dtype", "float64", "--json")
    assert made.code == 0, made.err
    assert made.json["n_update_layers"] == 1 and made.json["max_length"] == 24 and made.json["tokenizer"]
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "program.tint", "README.md"}
    sim = tintc.load(out)
    assert (sim.dtype, sim.config.n_steps, sim.config.inner_lr) == (torch.float64, 2, 1e-2)
    assert (sim.config.loss, sim.config.descend) == ("mse", "values,out,norm-gain")
    ran = command("run", out, "--text", STORY, "--block-size", 16, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["tokens_scored"] == 16 and ran.json["blocks"] == 2
    assert ran.json["perplexity_after"] != ran.json["perplexity_before"]
    assert ran.json["seconds"] > 0 and ran.json["peak_rss_bytes"] > 1e7
    split = command("run", out, "--text", STORY, "--block-size", 16, "--split-steps", "--json").json
    assert split["perplexity_before"] == ran.json["perplexity_before"]
    assert split["perplexity_after"] != ran.json["perplexity_after"]


def test_run_equals_the_python_interface(command: Command, compiled: Path) -> None:
    """Two blocks of 10 tokens, 3 of them train tokens; perplexity to 1e-5 (fp32)."""
    options = ("--block-size", 10, "--max-blocks", 2, "--train-fraction", 0.35, "--lr", 0.02)
    found = command("run", compiled, "--text", STORY, *options, "--json").json
    sim = tintc.load(compiled)
    ids = torch.tensor(sim.tokenizer(STORY)["input_ids"])[:20].reshape(2, 10)
    with torch.no_grad():
        out = sim(ids, train_mask=(torch.arange(10) < 3).expand(2, 10), inner_lr=0.02, return_before=True)
    for logits, name in ((out.logits_before, "perplexity_before"), (out.logits, "perplexity_after")):
        wanted = torch.nn.functional.cross_entropy(logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten())
        assert found[name] == pytest.approx(math.exp(wanted), rel=1e-5)
    assert found["tokens_scored"] == 14


def test_run_says_what_it_leaves_out(command: Command, compiled: Path) -> None:
    """Forty tokens in blocks of 12: four are left out and told of, or scored as a block of their own."""
    plain, partial = (
        command("run", compiled, "--text", STORY, "--block-size", 12, "--json", *more) for more in ((), ("--partial",))
    )
    assert (plain.json["blocks"], plain.json["tokens_left_out"], plain.json["tokens_scored"]) == (3, 4, 18)
    assert "4 tokens at the end make no whole block and are left out; --partial" in plain.err
    assert (partial.json["blocks"], partial.json["tokens_left_out"], partial.json["tokens_scored"]) == (4, 0, 20)
    assert partial.err == ""


def test_run_with_several_rates(command: Command, compiled: Path) -> None:
    """In one run, what each gives alone (1e-5, fp32); the best stands above, and the hint speaks of what got worse."""
    options = ("--text", STORY, "--block-size", 20)
    found = command("run", compiled, *options, "--lr", "10,100,1e30", "--json").json
    alone = [command("run", compiled, *options, "--lr", rate, "--json") for rate in ("10", "100")]
    assert [one["inner_lr"] for one in found["rates"]] == [10, 100, 1e30]
    for one, wanted in zip(found["rates"], alone, strict=False):
        assert one["perplexity_after"] == pytest.approx(wanted.json["perplexity_after"], rel=1e-5)
    assert found["rates"][2]["perplexity_after"] is None
    assert (found["inner_lr"], found["perplexity_after"]) == tuple(found["rates"][0].values())
    assert "rates" not in alone[0].json and alone[0].json["hint"] is None and alone[0].err == ""
    assert alone[1].err.startswith("hint: The text is predicted worse") and alone[1].json["hint"] in alone[1].err
    assert "--lr 0.001,0.0001,1e-05,1e-06" in alone[1].err
    table = command("run", compiled, *options, "--lr", "10,100,1e30").out
    assert "not finite" in table and "hint" not in table


def test_run_without_the_first_token(command: Command, compiled: Path, tmp_path: Path) -> None:
    """A tokenizer that begins a text with a token begins every block with it, unless told not to."""
    folder = Path(shutil.copytree(compiled, tmp_path / "sim"))
    tokenizer = tintc.load(folder).tokenizer
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="the $A", special_tokens=[("the", 2)])
    tokenizer.save_pretrained(folder)
    options = ("run", folder, "--text", STORY, "--block-size", 11, "--json")
    found, bare = command(*options).json, command(*options, "--no-bos").json
    assert (found["opening_tokens"], found["blocks"], found["tokens_left_out"]) == (1, 4, 0)
    assert (bare["opening_tokens"], bare["blocks"], bare["tokens_left_out"]) == (0, 3, 7)
    plain = command("run", compiled, *options[2:]).json
    assert plain["perplexity_after"] == bare["perplexity_after"] != found["perplexity_after"]


def test_standard_input(command: Command, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--file -``, of every command that reads a text; its mistakes name it."""

    def piped(content: bytes, *arguments: object) -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        return command(*arguments)

    text = STORY.encode()
    for name, more in (("run", ()), ("generate", ("--max-new-tokens", 2))):
        prompt = text[:60] if name == "generate" else text
        found = piped(prompt, name, compiled, "--file", "-", *more, "--json")
        wanted = command(name, compiled, "--text", prompt.decode(), *more, "--json")
        kept = ("perplexity_after", "ids")
        assert [found.json.get(key) for key in kept] == [wanted.json.get(key) for key in kept]
    assert "on the text" in piped(text, "run", compiled, "--file", "-").out
    refused = piped(b"caf\xe9", "run", compiled, "--file", "-")
    assert refused.code == 2 and "standard input is not UTF-8" in refused.err
    assert "is empty" in piped(b"", "run", compiled, "--file", "-").err
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = piped(text, "run", compiled, "--file", "-")
    assert refused.code == 2 and "cannot share standard input" in refused.err


def test_softmax_heads(command: Command, model: Path, tmp_path: Path) -> None:
    """Calibrated on a file; the counts are those of the tensors. `verify` allows what the heads are off, as long as the
    update still points where it should: in fp64, and of this model not in fp32."""
    out, text = tmp_path / "sim", tmp_path / "story.txt"
    text.write_text(STORY, encoding="utf-8")
    options = ("--linear-attention", "softmax", "--calibration-text", text, "--max-length", 16)
    made = command("compile", model, "-o", out, *options, "--json")
    assert made.code == 0, made.err
    assert command("inspect", out, "--json").json["linear_attention"] == "softmax"
    found = command("inspect", out, "--params", "--json").json["parameters"]["unique"]
    assert found == sum(tensor.numel() for tensor in load_file(out / "model.safetensors").values())
    short = command("verify", out, model, "--json").json
    assert not short["ok"] and short["update_cosine"] < 0.99, short["problems"]
    assert all("points elsewhere" in problem and "--dtype float64" in problem for problem in short["problems"])
    assert command("compile", model, "-o", out, *options, "--dtype", "float64", "--force").code == 0
    verified = command("verify", out, model, "--json")
    assert verified.code == 0 and verified.json["executor"] == "literal", verified.out
    assert verified.json["update_cosine"] > 0.999
    refused = command("run", out, "--text", STORY, "--executor", "fused")
    assert refused.code == 2 and "softmax heads" in refused.err


def test_file_and_text_are_the_same(command: Command, compiled: Path, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    from_file = command("run", compiled, "--file", tmp_path / "story.txt", "--json").json
    from_text = command("run", compiled, "--text", STORY, "--json").json
    assert from_file["perplexity_after"] == from_text["perplexity_after"]
    assert from_file["block_size"] == 32, "by default a block is the longest text the simulator takes"


def test_params_are_exact(command: Command, two_layers_sim: Path, two_layers: Path) -> None:
    compiled, model = two_layers_sim, two_layers
    found = command("inspect", compiled, "--params", "--json").json
    sizes = {name: tensor.shape for name, tensor in load_file(compiled / "model.safetensors").items()}
    assert found["parameters"]["unique"] == sum(shape.numel() for shape in sizes.values())
    assert found["parameters"]["table"] == sum(found["table_by_phase"].values())
    for count in ("table", "unrolled", "unique"):
        assert sum(row[count] for row in found["modules"]) == found["parameters"][count]
    weights = sum(row["unique"] for row in found["modules"] if row["kind"] == "weights")
    assert weights == sum(shape.numel() for name, shape in sizes.items() if name.startswith("prefixes."))
    assert found["paper"][0]["published"]["total"] == 1.2 and round(found["paper"][0]["table"]["total"], 2) == 1.29
    assert found["d_sim"] == found["heads"] * found["head_width"]
    assert sizes["structure.linear_forward_bias.w_o.0.bias"][0] == found["heads"]
    assert found == command("inspect", model, "--params", "--json").json, "of a model: what it would become"


def test_params_for_people(command: Command, two_layers_sim: Path) -> None:
    """Layers whose counts are the same share a row, and the last row is the sum."""
    compiled = two_layers_sim
    shown = [line.split() for line in command("inspect", compiled, "--params").out.splitlines()]
    rows = [line for line in shown if line[:2] == ["forward", "weights"]]
    assert [line[2] for line in rows] == ["0-1", "outside"]
    (total,) = (line for line in shown if line[:1] == ["all"])
    found = command("inspect", compiled, "--params", "--json").json["parameters"]
    assert total[1:] == [f"{found[count]:,}" for count in ("table", "unrolled", "unique")]
    assert not any("OPT" in line[0] for line in shown if line), "this is no OPT"
    beside = [line.split() for line in command("inspect", compiled, "--paper").out.splitlines()]
    assert ["OPT-2.7b", "7.4", "/", "7.39"] in [line[:4] for line in beside]
    assert all(line in beside for line in shown), "and all that --params shows"


def test_roles_are_shown_and_stored(command: Command, compiled: Path) -> None:
    """Of the modules or parameters that match; the artefact holds those of all."""
    found = command("inspect", compiled, "--roles", "descent_0.*mlp.*", "--json").json["roles"]
    sites = {row["site"] for row in found}
    assert sites and all(site.startswith("descent_0.") and "mlp" in site for site in sites)
    weight = next(row["parameter"] for row in found if row["parameter"].endswith("weight"))
    assert {row["parameter"] for row in command("inspect", compiled, "--roles", weight, "--json").json["roles"]} == {
        weight
    }
    stored = json.loads((compiled / "roles.json").read_text())
    assert sites <= {module["site"] for module in stored["modules"]}
    shown = command("inspect", compiled, "--roles", "descent_0.*mlp.*").out
    assert "result prefixes" in shown and "train tokens" in shown
    refused = command("inspect", compiled, "--roles", "nothing")
    assert refused.code == 2 and "matches 'nothing'" in refused.err


def test_programs_are_printed(command: Command, compiled: Path, model: Path) -> None:
    shown = command("inspect", compiled, "--ir", "sim")
    assert shown.out == (compiled / "program.tint").read_text()
    assert command("inspect", model, "--ir", "sim").out == shown.out
    aux = command("inspect", model, "--ir", "aux", "--json").json
    assert parse_program(aux["program"]).dialect == "aux"
    assert command("inspect", compiled, "--ir", "aux").out == aux["program"]


def test_summary_for_people(command: Command, compiled: Path) -> None:
    shown = command("inspect", compiled)
    assert "semantics" in shown.out and "exact" in shown.out and "linear_backward" in shown.out
    assert command("run", compiled, "--text", STORY).out.count("perplexity") == 2


def test_nothing_but_json_on_standard_output(command: Command, model: Path, tmp_path: Path) -> None:
    made = command("compile", model, "-o", tmp_path / "sim", "--json")
    assert len(made.out.splitlines()) == 1 and made.err == ""


def test_same_input_same_bytes(command: Command, model: Path, tmp_path: Path) -> None:
    for name in "ab":
        assert command("compile", model, "-o", tmp_path / name).code == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_no_tokenizer_is_invented(command: Command, tmp_path: Path) -> None:
    """A model folder without tokenizer files compiles, and can be run from Python only."""
    bare, out = model_folder(tmp_path / "bare", tiny_models.llama(n_layers=1), with_tokenizer=False), tmp_path / "sim"
    assert not command("compile", bare, "-o", out, "--json").json["tokenizer"]
    assert not list(out.glob("*token*"))
    refused = command("run", out, "--text", STORY)
    assert refused.code == 2 and "no tokenizer" in refused.err
    assert tintc.load(out)(torch.arange(8)[None]).logits.shape == (1, 8, 53)


def test_a_defect_keeps_its_traceback(command: Command, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("tintc.cli.inspect.parameter_report", broken)
    with pytest.raises(ZeroDivisionError):
        command("inspect", compiled, "--params")
    assert not issubclass(ZeroDivisionError, TintcError)


@pytest.mark.parametrize("module", ["tintc_cli", "tintc"])
def test_help(module: str) -> None:
    """`python -m` runs the command."""

    def action() -> None:
        sys.argv = ["tintc", "--help"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    shown = finished(forked(action))
    assert shown.code == 0, shown.err
    assert all(name in shown.out for name in ("compile", "inspect", "run"))


def test_help_hides_nothing() -> None:
    """Square brackets would be markup to it."""
    commands: Any = get_command(tintc_cli.app)
    said = [getattr(one, "help", None) or "" for command in commands.commands.values() for one in command.params]
    assert len(said) > 50 and not [text for text in said if "[" in text]


def test_help_needs_no_torch() -> None:
    program = "import sys, tintc_cli; assert not {'torch', 'transformers', 'tintc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
