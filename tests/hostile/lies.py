"""What a liar does to a simulator's folder, one row for each lie: what it changes, and how the refusal begins to say
so."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
HUGE = 99999999999999999999


def program(old: str, new: str) -> Change:
    """Return the change of the first such text in the program."""

    def change(folder: Path) -> None:
        text = (folder / "program.tint").read_text()
        changed = re.sub(old, lambda _: new, text, count=1)
        assert changed != text, f"the program has no {old}"
        (folder / "program.tint").write_text(changed)

    return change


def entry(file: str, **values: Any) -> Change:
    """Return the change of entries of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / file
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | values))

    return change


def text(file: str, content: str | bytes) -> Change:
    """Return the change of a whole file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(data)


def header(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Return the change of a weight file's header, whose tensors keep their bytes."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        edit(entries)
        written = json.dumps(entries).encode()
        path.write_bytes(len(written).to_bytes(8, "little") + written + data[8 + length :])

    return change


def tensor(**values: Any) -> Change:
    """Return the change of what a header says of its first tensor."""

    def edit(entries: dict[str, Any]) -> None:
        next(one for name, one in sorted(entries.items()) if name != "__metadata__").update(values)

    return header(edit)


def index(shard: Any) -> Change:
    """Return the change to a shard index that names this file for every tensor."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        names = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        names.pop("__metadata__", None)
        path.rename(folder.parent / "outside.safetensors")
        content = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return change


def instead(file: str, make: Callable[[Path], object]) -> Change:
    """Return the change of a file for something that is none."""

    def change(folder: Path) -> None:
        path = folder / file
        if path.exists():
            path.rename(folder.parent / f"outside-{file}")
        make(path)

    return change


def link_outside(path: Path) -> None:
    path.symlink_to(path.parent.parent / f"outside-{path.name}")


def sparse(path: Path) -> None:
    """Make a file of three gigabytes that takes no room."""
    path.touch()
    os.truncate(path, 3 << 30)


def journal(content: str, old: bool = True) -> Change:
    """Return the change that adds what an interrupted save leaves. old: with its folder of old files."""

    def change(folder: Path) -> None:
        staging = folder / ".save.tintc-x"
        staging.mkdir()
        if old:
            (staging / ".old").mkdir()
        (staging / ".journal").write_text(content)

    return change


DEEP = "[" * 100_000
MANY = f"[{'[],' * (1 << 20)}[]]"
LIES: dict[str, tuple[Change, str]] = {
    # the program's numbers
    "tiles without end": (program(r"tiles=\[1, 1\]", f"tiles=[{HUGE}, 1]"), "a number that is not finite, or of over"),
    "many tiles": (program(r"tiles=\[1, 1\]", "tiles=[999999999, 1]"), "and the layout gives (1, 1)"),
    "no stack": (program('"stack": 2', '"stack": 0'), "is out of range"),
    "a stack that does not divide": (program('"stack": 2', '"stack": 3'), "is damaged"),
    "a width as text": (program('"d_h": 8', '"d_h": "8"'), "d_h"),
    "a width null": (program('"d_h": 8', '"d_h": null'), "d_h"),
    "heads without end": (program('"n_heads": 3', '"n_heads": 999999999'), "says d_sim 24"),
    "steps true": (program("n_steps=1", "n_steps=true"), "n_steps"),
    "steps without end": (program("n_steps=1", "n_steps=1000000000"), "n_steps"),
    "minus one word": (program("vocab_size=23", "vocab_size=-1"), "vocab_size"),
    "a word more than there are": (program("vocab_size=23", "vocab_size=24"), "24"),
    "a number of 5000 digits": (program("vocab_size=23", f"vocab_size={'9' * 5000}"), "digits"),
    "a number that is infinite": (program("vocab_size=23", "vocab_size=1e999"), "not finite"),
    "lists without end": (program("vocab_size=23", f"vocab_size={DEEP}"), "nests more than"),
    "a shape that overflows": (program(": 23x8", ": 4294967296x4294967296"), "sizes"),
    "a shape of zeros": (program(": 23x8", ": 0x8"), "sizes"),
    "a value that overflows": (program(r": linear<8x8>", ": linear<99999999999999999x8>"), "is damaged"),
    "a slot beyond the table": (program(r"write=\[\[1\]\]", "write=[[999999999]]"), "its slots are"),
    "a slot before it": (program(r"write=\[\[1\]\]", "write=[[-1]]"), "its slots are"),
    "slots missing": (program(r"write=\[\[1\]\]", "write=[]"), "places and has 1 results"),
    "an origin with a hole": (program('origin="model.norm"', 'origin="a..b"'), "its origin is 'a..b'"),
    "a phase of its own": (program('phase="loss"', 'phase="evil"'), "its phase is 'evil'"),
    "a layer that is not there": (program("layer=0", "layer=7"), "its layer is 7"),
    "a layer that is no number": (program("layer=0", 'layer="0"'), "layer"),
    "an op that is none": (program(r"sim\.add\(", "os.system("), "os.system"),
    "a value before it is there": (program(r"sim\.add\(%\S+, ", "sim.add(%nothing, "), "%nothing is not defined"),
    "a value twice": (program(r"%model\.layers\.0\.add\.f0 =", "%model.embed_tokens.f0 ="), "line 35"),
    "operands missing": (program(r"sim\.add\([^)]*\)", "sim.add()"), "sim.add"),
    "an attribute twice": (program("n_steps=1", "n_steps=1, n_steps=1"), "stands there twice"),
    "another dialect": (program(r"sim\.program", "aux.program"), "is damaged"),
    "no program at all": (text("program.tint", ""), "a program starts with"),
    "a program that is no text": (text("program.tint", b"\xff\xfe"), "it is not UTF-8"),
    "a program of gigabytes": (instead("program.tint", sparse), "bytes, and at most"),
    # the configuration
    "a configuration that is a list": (text("config.json", "[]"), "not a compiled simulator"),
    "a configuration without end": (text("config.json", DEEP), "nests more than"),
    "a configuration of gigabytes": (instead("config.json", sparse), "bytes, and at most"),
    "a configuration of lists": (text("config.json", MANY), "it has more than 1,048,576 values"),
    "semantics without end": (entry("config.json", semantics=["exact"] * 10_000), "was compiled with semantics"),
    "digests true": (entry("config.json", digests=True), "its digests is True"),
    "a train fraction as text": (entry("config.json", train_fraction=""), "its train_fraction is ''"),
    "a train fraction of 7": (entry("config.json", train_fraction=7), "its train_fraction is 7"),
    "a dtype that is none": (entry("config.json", dtype="float4096"), "its dtype is 'float4096'"),
    "a format as text": (entry("config.json", format_version="2"), "format"),
    "a model in the model": (entry("config.json", text_config={"model_type": "llama"}), "has the entry 'text_config'"),
    "a number for a model in it": (entry("config.json", decoder=1), "has the entry 'decoder'"),
    "several pads": (entry("config.json", pad_token_id=[1, 2]), "its pad_token_id is [1, 2]"),
    "a method of a configuration": (entry("config.json", to_dict=1), "has the entry 'to_dict'"),
    "a method of settings": (entry("generation_config.json", to_dict=1), "its to_dict is 1"),
    "code": (entry("config.json", auto_map={"AutoModel": "evil.Evil"}), "has the entry 'auto_map'"),
    "nested code": (entry("config.json", more={"auto_map": {"AutoConfig": "evil.Evil"}}), "its more is"),
    "labels without end": (entry("config.json", num_labels=10**9), "has the entry 'num_labels'"),
    "a quantisation": (entry("config.json", quantization_config={"quant_method": "bnb"}), "quantization_config"),
    "weights elsewhere": (entry("config.json", transformers_weights="../a.safetensors"), "transformers_weights"),
    "a program in the configuration": (entry("config.json", program="sim.program {}"), "has the entry 'program'"),
    "layers without end": (entry("config.json", num_hidden_layers=10**15), "its num_hidden_layers is"),
    "a rate of 1e999": (entry("config.json", inner_lr=1e300 * 1e300), "its inner_lr is inf"),
    # files
    "a pipe for a program": (instead("program.tint", os.mkfifo), "it is a pipe, not a file"),
    "a pipe for weights": (instead("model.safetensors", os.mkfifo), "it is a pipe, not a file"),
    "a folder for weights": (instead("model.safetensors", Path.mkdir), "it is a folder, not a file"),
    "weights outside": (instead("model.safetensors", link_outside), "is a link to a file outside"),
    "a program outside": (instead("program.tint", link_outside), "is a link to a file outside"),
    "a link to itself": (instead("program.tint", lambda path: path.symlink_to(path.name)), "program.tint"),
    "a device for weights": (instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")), "outside"),
    "digests of nothing": (text("digests.json", "{}"), "it has no digests of files"),
    "digests without end": (text("digests.json", DEEP), "nests more than"),
    "digests of files outside": (
        entry("digests.json", files={"../x": {"size": 1, "sha256": "0" * 64, "sample": "0" * 64}}),
        "its entry of '../x' is no digest",
    ),
    # what an interrupted save leaves
    "a journal of nothing": (journal(""), "is damaged (it is not valid JSON"),
    "a journal of other folders": (journal('{"new": ["../x"], "gone": []}'), "it is no list of files"),
    "a journal of itself": (journal('{"new": [".journal"], "gone": []}'), "it is no list of files"),
    "a journal of one file twice": (journal('{"new": ["a", "a"], "gone": []}'), "it is no list of files"),
    "a journal without old files": (journal('{"new": [], "gone": []}', old=False), "is not what a writer leaves"),
    # the shard index
    "a shard above": (index("../outside.safetensors"), "no safetensors file in the folder"),
    "a shard by its whole path": (index("/etc/passwd"), "no safetensors file in the folder"),
    "a shard that is pickled": (index("all.bin"), "no safetensors file in the folder"),
    "a shard that is missing": (index("model-1.safetensors"), "which is not there"),
    "a shard that is a number": (index(7), "no safetensors file in the folder"),
    "a shard with a null byte": (index("a\0.safetensors"), "no safetensors file in the folder"),
    "an index that is null": (
        lambda folder: (
            index("x.safetensors")(folder),
            text("model.safetensors.index.json", "null")(folder),
        ),
        "it has no weight_map",
    ),
    # the weights' header
    "a header longer than its file": (text("model.safetensors", b"\xff" * 8 + b"{}"), "its header claims"),
    "a header of nothing": (text("model.safetensors", b""), "damaged"),
    "offsets beyond the file": (tensor(data_offsets=[0, 1 << 40]), "damaged"),
    "offsets backwards": (tensor(data_offsets=[64, 0]), "damaged"),
    "offsets that overflow": (tensor(data_offsets=[0, (1 << 64) - 1]), "damaged"),
    "offsets below nothing": (tensor(data_offsets=[-8, 8]), "damaged"),
    "a header that is a text": (header(lambda entries: entries.update({"x": "c" * 70_000})), "damaged"),
    "a tensor that overflows": (tensor(shape=[1 << 32, 1 << 32]), "damaged"),
    "a type that is none": (tensor(dtype="PICKLE"), "damaged"),
    "numbers that are whole": (tensor(dtype="I32"), "of the type I32, which no simulator has"),
    # settings for generating, and the tokenizer
    "settings that are a list": (text("generation_config.json", "[]"), "it is no object of settings"),
    "settings without end": (text("generation_config.json", DEEP), "nests more than"),
    "a pipe for settings": (instead("generation_config.json", os.mkfifo), "it is a pipe"),
    "a pipe for a tokenizer": (instead("tokenizer.json", os.mkfifo), "it is a pipe"),
    "a tokenizer outside": (instead("tokenizer.json", link_outside), "is a link to a file outside"),
    "words outside": (entry("tokenizer_config.json", vocab_file="../../etc/passwd"), "is not a file of its folder"),
    "words by a whole path": (entry("tokenizer_config.json", tokenizer_file="/etc/passwd"), "not a file of its"),
    "a template outside": (entry("tokenizer_config.json", chat_template_path="../x.jinja"), "not a file of its"),
    "a tokenizer that is a list": (text("tokenizer_config.json", "[]"), "it is no object of settings"),
}
