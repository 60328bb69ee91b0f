"""`tintc generate`."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import TextStreamer

from tintc.cli.console import check_writable, print_json, silence_libraries, stages
from tintc.cli.texts import read_text, tokenise
from tintc.errors import OptionError
from tintc.ir.inputs import resolve_inputs
from tintc.progress import LOGGER
from tintc.runtime.load import load
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.finite import without_nan_warning
from tintc.runtime.model.generation import check_longest
from tintc_cli.groups import Execution, Prompt


def generate_text(path: str, prompt: Prompt, options: dict[str, Any], execution: Execution, as_json: bool) -> None:
    """Adapt to a prompt, or take a state, and continue it; `options` are the command's."""
    silence_libraries()
    choice = _choice(options)
    content = read_text(prompt.text, prompt.file)
    with stages():
        LOGGER.info("loading the simulator")
        sim = load(path, **vars(execution))
        ids = prompt_ids(path, sim.tokenizer, content, options["chat"], sim.layout.max_length)[None].to(sim.device)
        training = _training(sim, ids, options)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    streams = not as_json and options["beams"] == 1
    shown = content
    if options["chat"]:
        shown += "\n"
    streamer = None
    if streams:
        streamer = _Terminal(sim.tokenizer, console, shown)
    start = time.perf_counter()
    LOGGER.info("adapting to the prompt, and writing")
    with torch.no_grad(), without_nan_warning():
        found = sim.generate(ids, streamer=streamer, return_dict_in_generate=True, **training, **choice)
    seconds = time.perf_counter() - start
    whole = found.sequences[0]
    if options["learn_every"] is not None and options["save_state"] is not None:
        found.past_key_values.state.save(options["save_state"])
    new = whole[ids.shape[1] :]
    written = _continuation(sim.tokenizer, ids[0], whole)
    if as_json:
        print_json(
            {
                "text": written,
                "ids": new.tolist(),
                "prompt_tokens": ids.shape[1],
                "new_tokens": len(new),
                "seconds": seconds,
                "executor": sim.last_executor,
                "device": str(sim.device),
            }
        )
    elif not streams:
        console.print(shown, style="dim", end="")
        console.print(written)


def prompt_ids(path: str, tokenizer: Any, text: str, chat: bool, most: int) -> Tensor:
    """Return token ids ``[T]`` of a prompt; of a chat's, those that the template makes of one message, an answer
    begun. most: tokens that a text may have."""
    if not chat:
        return tokenise(path, tokenizer, text, most=most)
    if getattr(tokenizer, "chat_template", None) is None:
        raise OptionError(f"The tokenizer of {path} has no chat template, so it is no chat model's; leave out --chat.")
    message = {"role": "user", "content": text}
    encoded = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)
    return torch.tensor(encoded["input_ids"], dtype=torch.long)


def _training(sim: TintForCausalLM, ids: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate` that say how the prompt is trained on, or the state that stands in place of
    that; a state is saved where that is asked."""
    lr = options["lr"]
    fraction = options["train_fraction"]
    file = options["state"]
    if options["learn_every"] is not None:
        return _learning(sim, options)
    if file is not None:
        if lr is not None or fraction is not None or options["save_state"] is not None:
            raise OptionError("A state is adapted already: leave out --lr, --train-fraction and --save-state.")
        return {"state": AdaptedState.load(file, sim)}
    training: dict[str, Any] = {"inner_lr": lr}
    if fraction is not None:
        training["train_mask"] = resolve_inputs(ids, train_fraction=fraction).train
    if options["save_state"] is None:
        return training
    check_longest(ids.shape[1] + options["max_new_tokens"], sim.layout.max_length)  # before anything is written
    state = sim.adapt(ids, **training)
    state.save(options["save_state"])
    return {"state": state}


def _learning(sim: TintForCausalLM, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate` that say how it goes on learning."""
    if options["train_fraction"] is not None:
        raise OptionError("With --learn-every the whole prompt is learnt; leave out --train-fraction.")
    check_writable(options["save_state"], "--save-state")
    state = None
    if options["state"] is not None:
        state = AdaptedState.load(options["state"], sim)
    return {"inner_lr": options["lr"], "state": state, "learn_every": options["learn_every"]}


def _choice(options: dict[str, Any]) -> dict[str, Any]:
    """Return how tokens are chosen, as transformers' `generate` takes it: greedily unless something says how to
    sample."""
    temperature, top_k, top_p, beams = (options[name] for name in ("temperature", "top_k", "top_p", "beams"))
    for name, value, fits, rule in (
        ("max new tokens", options["max_new_tokens"], lambda n: n >= 1, "at least 1"),
        ("temperature", temperature, lambda t: t is None or t > 0, "more than 0"),
        ("top-k", top_k, lambda k: k is None or k >= 1, "at least 1"),
        ("top-p", top_p, lambda p: p is None or 0 < p <= 1, "more than 0 and at most 1"),
        ("number of beams", beams, lambda n: n >= 1, "at least 1"),
    ):
        if not fits(value):
            raise OptionError(f"The {name} is {value}; it must be {rule}.")
    if options["seed"] is not None:
        torch.manual_seed(options["seed"])
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen = {name: value for name, value in sampling.items() if value is not None}
    if chosen and top_k is None:
        chosen["top_k"] = 0  # all: transformers would take the 50 likeliest
    return {"max_new_tokens": options["max_new_tokens"], "num_beams": beams, "do_sample": bool(chosen)} | chosen


def _continuation(tokenizer: Any, prompt: Tensor, whole: Tensor) -> str:
    """Return what the tokens after the prompt add to its text: a first word decoded alone would lose the space before
    it."""
    before, text = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, whole))
    if text.startswith(before):
        return text[len(before) :]
    return tokenizer.decode(whole[len(prompt) :])


class _Terminal(TextStreamer):
    """Show the text as it is written, word by word, the prompt before it."""

    def __init__(self, tokenizer: Any, console: Console, prompt: str):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.console = console
        self.prompt = prompt

    def put(self, value: Tensor) -> None:
        """Keep the prompt, which comes first, so that what follows is decoded as its continuation."""
        if not self.next_tokens_are_prompt:
            super().put(value)
            return
        self.next_tokens_are_prompt = False
        self.token_cache = value.flatten().tolist()
        self.print_len = len(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.console.print(self.prompt, style="dim", end="")
        self.prompt = ""
        self.console.print(text, end="")
        if stream_end:
            self.console.print()
