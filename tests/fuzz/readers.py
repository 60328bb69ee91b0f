"""What reads files of strangers, each with the files that are edited for it: `Sandbox` lays them out, whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf_layout
import torch
from edits import BYTES, INSTEAD, TENSOR_BYTES, TEXT, TREE, Edit, chosen, dumped, edited_bytes, edited_text, edited_tree

import tintc
from tintc.cli.inspect import read_artefact
from tintc.cli.opt import read_program
from tintc.frontend.source.bounds import check_files
from tintc.frontend.source.gguf_header import check_gguf
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.places import find_place
from tintc.ir.text import parse_program, print_program
from tintc.lowering.emission.emit import specs
from tintc.lowering.pipeline import PIPELINE, run_passes
from tintc.options import Options
from tintc.runtime.adaptation.rebuilt import rebuilt
from tintc.runtime.adaptation.state_file import read_state
from tintc.runtime.artefact.checks import of_program
from tintc.runtime.artefact.digests import altered
from tintc.runtime.artefact.folder import opened, parsed_program
from tintc.runtime.artefact.names import INDEX_FILE
from tintc.runtime.artefact.snapshot import open_snapshot
from tintc.runtime.artefact.tokenizer import read_tokenizer
from tintc.runtime.model.from_folder import Source

JSON, PROGRAM, TENSORS, GGUF = "json", "program", "tensors", "gguf"
TEXT_ALONE = "text"
"""A program whose file stays one: what it may be instead is tried with other readers."""
INSTEAD_KIND = "instead"
KINDS: dict[str, tuple[str, ...]] = {
    JSON: (*TREE, *TREE, *BYTES, INSTEAD_KIND),
    PROGRAM: (*TEXT, *TEXT, *TEXT, *BYTES, INSTEAD_KIND),
    TEXT_ALONE: (*TEXT, *TEXT),
    TENSORS: (*TREE, *TENSOR_BYTES, INSTEAD_KIND),
    GGUF: (*TREE, *TREE, *BYTES, INSTEAD_KIND),
}
"""The edits of a format, those of its structure more often than those of its bytes."""
IDS = torch.arange(3, 9)[None]


@dataclass(frozen=True)
class Reader:
    """files: those that are edited, by name, with their format; read: what is tried on the folder; share: of cases;
    follows: whether it is given a path, or a model, whose links are followed."""

    folder: str
    files: dict[str, str]
    read: Callable[[Sandbox, Path], object]
    share: int
    follows: bool = False


class Sandbox:
    """Whole files, in a folder of its own; copies that nobody may open stand in ``outside``."""

    def __init__(self, base: Path, compiled: Path):
        """Make what is read. compiled: a folder with a model and its simulator, ``model`` and ``sim``."""
        self.base = base
        for name in ("model", "sim"):
            shutil.copytree(compiled / name, base / name)
        self.sim = tintc.load(shutil.copytree(base / "sim", base / "loaded"))  # whose files stay mapped, and whole
        self.sim.save_pretrained(base / "shards", max_shard_size="8KB")
        (base / "states").mkdir()
        self.sim.adapt(IDS).save(base / "states" / "learnt")
        self.sim.adapt(IDS.expand(2, -1)).save(base / "states" / "pending")  # each example's updates apart
        (base / "gguf").mkdir()
        gguf_layout.write_tiny(base / "gguf" / "model.gguf")
        adapter = base / "adapter"
        adapter.mkdir()
        entries = {"peft_type": "LORA", "base_model_name_or_path": str(base / "model"), "r": 2}
        (adapter / "adapter_config.json").write_text(json.dumps(entries))
        self._interrupt_a_save()
        self.whole = {file: file.read_bytes() for file in sorted(base.rglob("*")) if file.is_file()}
        (base / "outside").mkdir()
        for file, data in self.whole.items():
            (base / "outside" / file.name).write_bytes(data)

    def _interrupt_a_save(self) -> None:
        """Leave a folder whose files are exchanged by a journal, of which none has been renamed."""
        target = self.base / "journals"
        staging = target / ".save.tintc-x"
        (staging / ".old").mkdir(parents=True)
        for name in ("config.json", "program.tint"):
            (target / name).write_text("old")
            (staging / name).write_text("new")
        (staging / ".journal").write_text(json.dumps({"new": ["config.json", "program.tint"], "gone": ["gone.txt"]}))

    def apply(self, reader: Reader, edits: list[Edit]) -> None:
        """Write the files of a reader that are edited, and with them what else is made of edited ones."""
        for name, kind in reader.files.items():
            own = [edit for edit in edits if edit.file == name]
            if own:
                self._edit(self.base / reader.folder / name, kind, own)

    def _edit(self, path: Path, kind: str, edits: list[Edit]) -> None:
        data = self.whole[path]
        tree = [edit for edit in edits if edit.kind in TREE]
        raw = [edit for edit in edits if edit.kind in TENSOR_BYTES]
        if kind == JSON and tree:
            data = dumped(edited_tree(json.loads(data), tree))
        elif kind == TENSORS and tree:
            length = int.from_bytes(data[:8], "little")
            header = dumped(edited_tree(json.loads(data[8 : 8 + length]), tree))
            data = len(header).to_bytes(8, "little") + header + data[8 + length :]
        elif kind == GGUF and tree:
            data = gguf_layout.packed(edited_tree(gguf_layout.described(data), tree))
        elif kind in (PROGRAM, TEXT_ALONE):
            text = edited_text(data.decode(), [edit for edit in edits if edit.kind in TEXT])
            data = text.encode("utf-8", "surrogatepass")
        path.write_bytes(edited_bytes(data, raw))
        for edit in edits:
            if edit.kind == INSTEAD_KIND:
                _remove(path)
                chosen(list(INSTEAD.values()), edit.what)(path)

    def restore(self, reader: Reader) -> None:
        """Make the reader's folder whole again."""
        folder = self.base / reader.folder
        if reader.folder == "journals":
            shutil.rmtree(folder)
            self._interrupt_a_save()
            return
        for name in reader.files:
            path = folder / name
            _remove(path)
            path.write_bytes(self.whole[path])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _simulator(_: Sandbox, folder: Path) -> None:
    Source.of(folder, {})
    with opened(folder, weights=True) as snapshot:
        altered(snapshot)


def _program(_: Sandbox, folder: Path) -> None:
    program = parsed_program((folder / "program.tint").read_text(), "program.tint")
    specs(program)
    of_program(program)
    printed = print_program(program)
    assert print_program(parse_program(printed)) == printed, "a program prints as another"


def _auxiliary(_: Sandbox, folder: Path) -> None:
    run_passes(PIPELINE, read_program(folder / "auxiliary.tint"), Options(max_length=32))


def _run(_: Sandbox, folder: Path) -> None:
    sim = tintc.load(folder)
    _ = sim.tokenizer
    sim.state_dict()
    for executor in ("literal", "fused"):
        sim.executor = executor
        with torch.no_grad():
            sim(IDS)


def _states(sandbox: Sandbox, folder: Path) -> None:
    for name in ("pending", "learnt"):
        read_state(folder / name, sandbox.sim)


def _model(_: Sandbox, folder: Path) -> None:
    load_auxiliary(folder, values=False)


def _place(_: Sandbox, folder: Path) -> None:
    place = find_place(str(folder))
    check_files(place.folder, place.name)


def _described(sandbox: Sandbox, folder: Path) -> None:
    with open_snapshot(folder) as snapshot:
        text = snapshot.text("auxiliary.json")
    if text is not None:
        rebuilt(sandbox.sim, text)


def _journal(_: Sandbox, folder: Path) -> None:
    open_snapshot(folder).close()


SETTINGS = {"config.json": JSON, "generation_config.json": JSON, "digests.json": JSON, "program.tint": PROGRAM}
WEIGHTS = {"model.safetensors": TENSORS}
TOKENIZER = {"tokenizer.json": JSON, "tokenizer_config.json": JSON}
READERS: dict[str, Reader] = {
    "settings": Reader("sim", {"config.json": JSON, "generation_config.json": JSON}, _simulator, 14),
    "digests": Reader("sim", {"digests.json": JSON}, _simulator, 5),
    "headers": Reader("sim", WEIGHTS, _simulator, 12),
    "index": Reader("shards", {INDEX_FILE: JSON}, _simulator, 6),
    "program": Reader("sim", {"program.tint": TEXT_ALONE}, _program, 20, follows=True),
    "states": Reader("states", {"pending": TENSORS, "learnt": TENSORS}, _states, 12, follows=True),
    "gguf": Reader("gguf", {"model.gguf": GGUF}, lambda _, folder: check_gguf(folder / "model.gguf"), 8, follows=True),
    "place": Reader("adapter", {"adapter_config.json": JSON}, _place, 3, follows=True),
    "tokenizer": Reader("sim", TOKENIZER, lambda _, folder: read_tokenizer(folder, {}), 5),
    "journal": Reader("journals", {".save.tintc-x/.journal": JSON}, _journal, 3),
    "inspect": Reader("sim", SETTINGS | WEIGHTS, lambda _, folder: read_artefact(str(folder)), 4),
    "auxiliary": Reader("sim", {"auxiliary.tint": PROGRAM}, _auxiliary, 4, follows=True),
    "described": Reader("sim", {"auxiliary.json": JSON}, _described, 2),
    "model": Reader(
        "model", {"config.json": JSON, "generation_config.json": JSON} | WEIGHTS | TOKENIZER, _model, 3, follows=True
    ),
    "gguf model": Reader(
        "gguf", {"model.gguf": GGUF}, lambda _, folder: load_auxiliary(folder / "model.gguf"), 1, follows=True
    ),
    "run": Reader("sim", SETTINGS | WEIGHTS | TOKENIZER, _run, 1),
}
"""What is read, cheap ones more often; what costs a tenth of a second, seldom."""
