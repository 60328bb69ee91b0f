"""Perplexity of a text along which the weights keep learning, beside that of the same chunks under frozen weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tintc.evaluation.hints import hint_of
from tintc.evaluation.perplexity import perplexity
from tintc.ir.special import opening_of
from tintc.runtime.execution.available import peak_rss_bytes
from tintc.runtime.model.adapted_state import AdaptedState

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM


@dataclass(frozen=True)
class StreamEvaluation:
    """The result of `evaluate_stream`.

    perplexity_frozen, perplexity_streamed: of all scored tokens together, under the weights of the beginning, and under
    those that have learnt the chunks before; tokens_scored: their number; chunks: how many; chunk_size, context: tokens
    of a chunk, and most tokens before it; opening_tokens: special tokens that every window begins with, beside these;
    seconds: wall clock of it all; peak_rss_bytes: resident memory at its largest; hint: what to try where learning made
    it worse.
    """

    perplexity_frozen: float
    perplexity_streamed: float
    tokens_scored: int
    seconds: float
    peak_rss_bytes: int
    chunks: int
    chunk_size: int
    context: int
    inner_lr: float
    executor: str
    device: str
    opening_tokens: int = 0
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return its fields."""
        return asdict(self)


def evaluate_stream(
    sim: TintForCausalLM,
    input_ids: Tensor,
    chunk_size: int,
    context: int = 0,
    inner_lr: float | None = None,
    bos: bool = True,
    state: AdaptedState | None = None,
    on_chunk: Callable[[int, int], None] | None = None,
) -> tuple[StreamEvaluation, AdaptedState]:
    """Stream a text ``[n]`` through `sim`; return its perplexities, and the weights at its end.

    The arguments are those of `sim.stream`; on_chunk is called with (done, total). Raises what that does, and
    `InputError` where the weights have been ruined.
    """
    start = time.perf_counter()
    stream = sim.stream(input_ids, chunk_size, context, inner_lr=inner_lr, state=state, bos=bos)
    for done, _ in enumerate(stream, 1):
        if on_chunk is not None:
            on_chunk(done, len(stream))
    seconds = time.perf_counter() - start
    scored = int(stream.tokens.sum())
    rate = sim.config.inner_lr if inner_lr is None else inner_lr
    frozen = perplexity(float(stream.frozen.sum()), scored, "the auxiliary model does not fit this text")
    streamed = perplexity(
        float(stream.streamed.sum()), scored, f"the learning rate {rate} is too large; choose a smaller one"
    )
    opening = ()
    if bos:
        opening = opening_of(sim.tokenizer)
    evaluation = StreamEvaluation(
        perplexity_frozen=frozen,
        perplexity_streamed=streamed,
        tokens_scored=scored,
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes(),
        chunks=len(stream),
        chunk_size=chunk_size,
        context=context,
        inner_lr=rate,
        executor=sim.last_executor,
        device=str(sim.device),
        opening_tokens=len(opening),
        hint=hint_of(frozen, streamed, [rate], f"{chunk_size} in a chunk", sim.config.optimizer),
    )
    return evaluation, stream.state
