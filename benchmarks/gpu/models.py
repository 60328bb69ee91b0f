"""Simulators and auxiliaries of published shapes, made on the device: speed does not depend on what their weights are.

A simulator's program is compiled from the shape alone, and its tensors are random numbers. So nothing here says whether
results are right: the tests do that.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedConfig, PreTrainedModel

from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.weightless import weightless_model
from tintc.lowering.emission.emit import specs, stored_dtype
from tintc.options import Options
from tintc.runtime.artefact.config import PROGRAM_FILE, TintConfig
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.stages import configure, import_auxiliary, lower

LONGEST = 2048
SPREAD = 0.02
SMALL = ("score_vectors.", "rates.")
"""Tensors that are made as they are compiled; all others are random."""
VECTORS = "vectors.safetensors"
RATE = 1e-6


def config(name: str) -> PreTrainedConfig:
    """Return the configuration of a shape: opt-125m, smollm2-135m, llama-1.2b, or tiny."""
    if name == "opt-125m":
        return OPTConfig(dropout=0.0, attention_dropout=0.0)
    widths, heads, vocab = {
        "smollm2-135m": ((576, 1536, 30), (9, 3), 49152),
        "llama-1.2b": ((2048, 8192, 16), (32, 8), 128256),
        "tiny": ((16, 24, 2), (4, 2), 61),
    }[name]
    return LlamaConfig(
        hidden_size=widths[0],
        intermediate_size=widths[1],
        num_hidden_layers=widths[2],
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        vocab_size=vocab,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass
class Shape:
    """A simulator of one shape on a device, in one dtype."""

    name: str
    sim: TintForCausalLM

    def auxiliary(self) -> PreTrainedModel:
        """Return the auxiliary that it would simulate, of random weights, where the simulator is."""
        with self.sim.device:
            model = AutoModelForCausalLM.from_config(config(self.name), dtype=self.sim.dtype)
        return model.to(self.sim.device).eval()


def prepare(name: str, folder: Path) -> None:
    """Compile a shape, and keep what `make` needs of it in a folder, so that no measurement waits for that."""
    options = Options(inner_lr=RATE)
    source = load_auxiliary(weightless_model(config(name), "sdpa"), LONGEST)
    auxiliary = import_auxiliary(source)
    program = lower(auxiliary.program, options, source.max_length)
    made = configure(program, auxiliary, source, options)
    every = specs(program, auxiliary.tensors, options.inner_lr).items()
    small = {key: spec.build().contiguous() for key, spec in every if key.startswith(SMALL)}
    with tempfile.TemporaryDirectory(dir=_made(folder)) as place:  # a process that is killed leaves no half of it
        made.save_pretrained(place)
        (Path(place) / PROGRAM_FILE).write_text(str(made.program), encoding="utf-8")
        save_file(small, Path(place) / VECTORS)
        for file in sorted(Path(place).iterdir(), key=lambda file: file.name == VECTORS):
            file.replace(_made(folder / name) / file.name)  # that which `make` looks for comes last


def make(name: str, device: torch.device, dtype: torch.dtype, folder: Path) -> Shape:
    """Return a simulator of a shape: one step on all layers, texts of up to `LONGEST` tokens.

    folder: of what `prepare` leaves, which is done if it has not been.
    """
    if not (folder / name / VECTORS).exists():
        prepare(name, folder)
    made = TintConfig.from_pretrained(folder / name)
    made.dtype = dtype
    with torch.device("meta"):
        sim = TintForCausalLM(made)
    generator = torch.Generator(device).manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    small = load_file(folder / name / VECTORS)
    for tensor, parameter in sim.named_parameters():
        held = stored_dtype(tensor, dtype)
        if tensor in small:
            state[tensor] = small[tensor].to(device, held)
        elif tensor.startswith("structure."):
            state[tensor] = torch.zeros(parameter.shape, device=device, dtype=held)
        else:
            filled = torch.empty(parameter.shape, device=device, dtype=held)
            state[tensor] = filled.normal_(0, SPREAD, generator=generator)
        if tensor.endswith((".gain", ".vector")):
            state[tensor].fill_(1)
    sim.load_state_dict(state, strict=True, assign=True)
    sim.zero_absent_terms()
    sim.to(device)
    sim.trust()  # fused execution, which is measured, reads no structural tensor
    sim.executor = "fused"
    return Shape(name, sim.eval())
