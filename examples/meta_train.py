"""Train what a simulated step starts from: its learning rates, and the weights that it updates.

    python examples/meta_train.py MODEL TEXT... [--rounds 20] [--out sim-trained]

Texts are cut into blocks. A simulator trains on the first half of each inside its forward pass; what Adam lowers is the
loss of the second half after that step, through the step. Every other block is held out and shows what it is worth:
loss before the step, after it, and the gain, for the simulator as it was compiled, with trained rates, and with trained
rates and prefixes (the auxiliary's weights).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

import tintc

RATES, WEIGHTS = 0.1, 1e-4
"""Adam's rates: of the logarithms of learning rates, and of weights."""


def main(
    model: Annotated[str, typer.Argument(help="A decoder: a folder or a hub id.")],
    texts: Annotated[list[Path], typer.Argument(help="UTF-8 texts.")],
    blocks: Annotated[int, typer.Option(help="Most blocks of all texts; every other one is held out.")] = 16,
    block_size: Annotated[int, typer.Option(help="Tokens in a block.")] = 128,
    rounds: Annotated[int, typer.Option(help="Updates of the rates, and then of rates and prefixes.")] = 20,
    optimizer: Annotated[str, typer.Option(help="Of the simulated step: sgd, momentum or normalized.")] = "normalized",
    out: Annotated[Path | None, typer.Option(help="Save the trained simulator here.")] = None,
) -> None:
    """Train rates, then rates and prefixes, and show held-out losses before and after a simulated step."""
    transformers.logging.set_verbosity_error()
    sim = tintc.compile(model, optimizer=optimizer, max_length=block_size)
    ids = cut(sim, [path.read_text(encoding="utf-8") for path in texts], block_size)[:blocks]
    if len(ids) < 2:
        raise SystemExit(f"The texts make {len(ids)} blocks of {block_size} tokens; two are needed.")
    train, held_out = ids[::2], ids[1::2]
    table = Table("", "before the step", "after", "gain", title=f"Loss of {len(held_out)} held-out blocks")
    table.add_row("as compiled", *losses(sim, held_out))
    meta_train(sim, train, ["rates"], rounds)
    table.add_row("rates trained", *losses(sim, held_out))
    meta_train(sim, train, ["rates", "prefixes"], rounds)
    table.add_row("rates and prefixes trained", *losses(sim, held_out))
    Console().print(table)
    if out is not None:
        sim.save_pretrained(out)


def cut(sim: tintc.TintForCausalLM, texts: list[str], size: int) -> Tensor:
    """Return whole blocks ``[n, size]``, each of one text, behind a BOS token if the tokenizer has one."""
    opening = [token for token in (sim.tokenizer.bos_token_id,) if token is not None]
    made: list[list[int]] = []
    for text in texts:
        tokens = sim.tokenizer(text, add_special_tokens=False).input_ids
        room = size - len(opening)
        made += [opening + tokens[start : start + room] for start in range(0, len(tokens) - room + 1, room)]
    return torch.tensor(made)


def meta_train(sim: tintc.TintForCausalLM, ids: Tensor, kinds: list[str], rounds: int) -> None:
    """Train parameters of these kinds for the loss after the simulated step.

    Rates are positive and differ by orders of magnitude, so their logarithms are what Adam moves.
    """
    sim.trainable(*kinds)
    trained = {name: parameter for name, parameter in sim.named_parameters() if parameter.requires_grad}
    rates = [parameter for name, parameter in trained.items() if name.startswith("rates.")]
    weights = [parameter for name, parameter in trained.items() if not name.startswith("rates.")]
    logs = [rate.detach().log().requires_grad_() for rate in rates]
    groups = [{"params": logs, "lr": RATES}, {"params": weights, "lr": WEIGHTS}]
    adam = torch.optim.Adam([group for group in groups if group["params"]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] // 2, -100)
    for _ in track(range(rounds), f"training {' and '.join(kinds)}", console=Console(stderr=True), transient=True):
        sim.zero_grad()
        loss = sim(ids, labels=labels).loss  # the first half of each block is trained on, unless told otherwise
        loss.backward()
        for log, rate in zip(logs, rates, strict=True):
            assert rate.grad is not None
            log.grad = rate.grad * rate.detach()  # since rate = exp(log)
        adam.step()
        with torch.no_grad():
            for log, rate in zip(logs, rates, strict=True):
                rate.copy_(log.exp())


@torch.no_grad()
def losses(sim: tintc.TintForCausalLM, ids: Tensor) -> list[str]:
    """Return the mean loss of second halves before a simulated step and after it, and how much that gains."""
    seen = sim(ids, return_before=True)
    half = ids.shape[1] // 2
    before, after = (
        float(cross_entropy(logits[:, half - 1 : -1].flatten(0, 1), ids[:, half:].flatten()))
        for logits in (seen.logits_before, seen.logits)
    )
    return [f"{before:.4f}", f"{after:.4f}", f"{before - after:.4f}"]


if __name__ == "__main__":
    typer.run(main)
