"""Models, options and texts from strangers: what nobody could build is refused before anything is built."""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import Command, contents
from lies import DEEP, Change, entry, index, instead, sparse, text

from tintc.errors import ModelError, OptionError
from tintc.frontend.source.load import load_auxiliary
from tintc.options import Options

CONFIG = "config.json"
LIES: dict[str, tuple[Change, str]] = {
    "layers without end": (entry(CONFIG, num_hidden_layers=10**6), "num_hidden_layers 1,000,000 in its config.json"),
    "more layers than weights": (entry(CONFIG, num_hidden_layers=1000), "weights of 1 at most"),
    "a width without end": (entry(CONFIG, hidden_size=10**9), "hidden_size 1,000,000,000"),
    "heads without end": (entry(CONFIG, num_attention_heads=10**9), "num_attention_heads"),
    "words without end": (entry(CONFIG, vocab_size=1 << 62), "vocab_size"),
    "labels without end": (entry(CONFIG, num_labels=10**9), "num_labels"),
    "named labels without end": (entry(CONFIG, id2label={str(n): "x" for n in range(70_000)}), "id2label 70,000"),
    "a nested model without end": (entry(CONFIG, text_config={"num_hidden_layers": 10**9}), "num_hidden_layers"),
    "in a list in a list": (entry(CONFIG, more=[{"parts": {"n_layers": 10**9}}]), "n_layers"),
    "a width that the files cannot hold": (entry(CONFIG, hidden_size=2_000_000), "parameters, and its files hold"),
    "no width": (entry(CONFIG, hidden_size=0), "other shapes"),
    "a width as text": (entry(CONFIG, hidden_size="8"), "cannot be loaded"),
    "nested code": (entry(CONFIG, auto_map={"AutoConfig": "evil.Evil"}, model_type="evil"), "trust-remote-code"),
    "a number of 5000 digits": (text(CONFIG, f'{{"vocab_size": {"9" * 5000}}}'), "has a broken config.json"),
    "lists without end": (text(CONFIG, DEEP), "nests more than 64"),
    "a configuration of gigabytes": (instead(CONFIG, sparse), "bytes, and at most"),
    "a configuration that is a list": (text(CONFIG, "[]"), "it is no object of settings"),
    "a pipe for a configuration": (instead(CONFIG, os.mkfifo), "has no config.json"),
    "a pipe for weights": (instead("model.safetensors", os.mkfifo), "it is a pipe, not a file"),
    "a pipe for a tokenizer": (instead("tokenizer.json", os.mkfifo), "it is a pipe, not a file"),
    "a pipe for settings": (instead("generation_config.json", os.mkfifo), "it is a pipe, not a file"),
    "a device for weights": (instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")), "it is a device"),
    "a shard above": (index("../outside.safetensors"), "names '../outside.safetensors', no file of its folder"),
    "a shard by its whole path": (index("/etc/passwd"), "no file of its folder"),
    "a shard that is a number": (index(7), "no file of its folder"),
    "a base without end": (
        entry("adapter_config.json", base_model_name_or_path="[" * 5000),
        "is an adapter of peft for",
    ),
    "a base with a null byte": (
        entry("adapter_config.json", base_model_name_or_path="a\0"),
        "is an adapter of peft for",
    ),
    "a base of nobody": (entry("adapter_config.json", base_model_name_or_path="~nobody-"), "is an adapter of peft for"),
    "a base of two lines": (
        entry("adapter_config.json", base_model_name_or_path="a\nb"),
        "is an adapter of peft for a b",
    ),
    "a method of a configuration": (entry(CONFIG, to_dict=1), "cannot be loaded"),
    "a number for a model in it": (entry(CONFIG, text_config=1), "cannot be loaded"),
    "a length of lists": (entry(CONFIG, max_position_embeddings=[32] * 10_000), "expected int, got list"),
    "an index that is a list": (text("model.safetensors.index.json", "[]"), "has no weight_map"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(llama_sim: Path, tmp_path: Path, lie: str) -> None:
    change, says = LIES[lie]
    folder = Path(shutil.copytree(llama_sim.parent / "model", tmp_path / "model"))
    change(folder)
    with pytest.raises(ModelError) as refused:
        load_auxiliary(folder)
    assert says in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def gguf(entries: dict[str, Any], tensors: int = 0, claimed: int | None = None, version: int = 3) -> bytes:
    """Return a GGUF file of entries, whole numbers and texts, and of tensors of one number each. claimed: how many
    tensors it says that it has."""

    def string(one: str) -> bytes:
        return struct.pack("<Q", len(one)) + one.encode()

    parts = [b"GGUF", struct.pack("<IQQ", version, tensors if claimed is None else claimed, len(entries))]
    for name, value in entries.items():
        if isinstance(value, str):
            parts.append(string(name) + struct.pack("<I", 8) + string(value))
        else:
            parts.append(string(name) + struct.pack("<IQ", 10, value))
    for number in range(tensors):
        parts.append(string(f"blk.{number}.x") + struct.pack("<IQIQ", 1, 1, 0, 32 * number))
    return b"".join(parts) + bytes(32 * (tensors + 1))


ONE = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 8}
FILES: dict[str, tuple[bytes, str]] = {
    "blocks without end": (gguf(ONE | {"llama.block_count": 10**9}, 1), "claims 1000000000 blocks"),
    "no blocks": (gguf({"general.architecture": "llama"}, 1), "claims no blocks"),
    "no width": (gguf(ONE | {"llama.embedding_length": 0}, 1), "claims no width"),
    "tensors without end": (gguf(ONE, 1, claimed=1 << 62), "claims more than the file holds"),
    "entries without end": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "claims more than the file holds"),
    "a text without end": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "claims more than the file holds"),
    "a version of the future": (gguf(ONE, 1, version=99), "its version is 99"),
    "an alignment of nothing": (gguf(ONE | {"general.alignment": 0}, 1), "aligns tensors by 0"),
    "nothing": (b"", "it is empty"),
    "something else": (b"PK\3\4" + bytes(64), "does not begin with GGUF"),
}


@pytest.mark.parametrize("lie", FILES)
def test_gguf_files(tmp_path: Path, lie: str) -> None:
    content, says = FILES[lie]
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError) as refused:
        load_auxiliary(tmp_path / "model.gguf")
    assert says in str(refused.value)


@pytest.mark.parametrize("name", ["n_steps", "stack", "shards", "head_width", "heads", "max_length"])
def test_options_without_end(name: str) -> None:
    with pytest.raises(OptionError, match=rf"The option {name} is 1000000000; .* at most \d+\."):
        replace(Options(), **{name: 10**9})


def test_texts_without_end(command: Command, llama_sim: Path, tmp_path: Path) -> None:
    """Of a megabyte without a line, those commands that take a window of it read no more."""
    (tmp_path / "long.txt").write_text("a cat sat " * 10**5)
    generated = command("generate", llama_sim, "--file", tmp_path / "long.txt")
    assert generated.code == 2 and "this simulator was compiled for at most 32" in generated.err
    verified = command("verify", llama_sim, llama_sim.parent / "model", "--text", tmp_path / "long.txt", "--json")
    assert verified.code == 0 and verified.json["tokens"] == 32


def test_every_byte(command: Command, llama_sim: Path, tmp_path: Path) -> None:
    """One bit of each file: without `--files` an edited simulator is told of, with it nothing escapes."""
    folder = Path(shutil.copytree(llama_sim, tmp_path / "sim"))
    whole = command("verify", folder, "--files", "--json").json
    names = sorted(contents(folder).keys() - {"README.md", "digests.json"})
    assert whole["ok"] and whole["files"] == len(names)
    assert whole["bytes"] == sum((folder / name).stat().st_size for name in names)
    for name in names:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)
    (folder / "roles.json").unlink()
    text("program.tint", (llama_sim / "program.tint").read_bytes())(folder)
    shutil.copy(llama_sim / "config.json", folder)
    found = command("verify", folder, "--files", "--json")
    changed = [name for name in names if name not in ("program.tint", "config.json")]
    assert found.code == 1 and found.json["changed"] == changed and not found.json["ok"]
    for arguments, says in (((folder,), "Name the model"), ((folder, "m", "--files"), "leave MODEL out, or --files")):
        refused = command("verify", *arguments)
        assert refused.code == 2 and says in refused.err
    (folder / "digests.json").unlink()
    assert "has no digests.json" in command("verify", folder, "--files").err
    assert "has no digests.json, so whether it was edited" in command("inspect", folder).err
    assert json.loads((llama_sim / "digests.json").read_text())["files"].keys() == {*names}
