"""`tintc explain`: the rule behind each op, and where tensors went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from command import Command
from tiny_models import build


def test_ops_and_tensors(command: Command, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
    }
    build("gemma3_text", **sizes, head_dim=8, intermediate_size=48, vocab_size=53).save_pretrained(tmp_path)
    found = command("explain", tmp_path, "--json").json
    rules = {op["op"]: op["rule"] for op in found["ops"]}
    assert rules["aux.scale"] == "ScaleRule" and rules["aux.gate"] == "MultiplyRule"
    becomes = {tensor["name"]: tensor["becomes"] for tensor in found["tensors"]}
    assert becomes["model.norm.weight"] == "weight of model.norm, computed"
    assert becomes["lm_head.weight"].startswith("tied to model.embed_tokens.weight: table of model.embed_tokens; ")
    assert becomes["model.embed_tokens.embed_scale"] == "numbers in model.embed_tokens.scale"
    shown = command("explain", tmp_path)
    assert shown.code == 0 and "AttentionRule" in shown.out
