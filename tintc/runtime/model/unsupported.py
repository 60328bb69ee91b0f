"""What transformers, PyTorch and other libraries offer of any model and a simulator cannot have, each refused in a
sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _is_tracing as is_tracing
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from tintc.errors import ArtefactError, InputError, OptionError
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.execution.module_tree import Container
from tintc.runtime.execution.run import refuse_float16

Given = ParamSpec("Given")
Result = TypeVar("Result")

PACKED = (
    "A simulator trains on each row as one text, so texts are not packed into a row (padding_free, packing); pass one "
    "text a row, with attention_mask for padding."
)
ARGUMENTS = {
    "inputs_embeds": "A simulator looks up embeddings itself, before every pass; pass input_ids, and change embeddings "
    "by sim.edit({'embeddings': function}).",
    "token_type_ids": "A simulator knows no token types; leave token_type_ids out, or call the tokenizer with "
    "return_token_type_ids=False.",
    "head_mask": "Heads are not masked by an argument; edit what they give by sim.edit.",
    **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"), PACKED),
}
"""Arguments of other models' `forward`, and what to do."""
GENERATION: dict[str, tuple[Callable[[Any], bool], str]] = {
    "guidance_scale": (
        lambda value: value not in (None, 1),
        "Guidance compares with a text that has not been adapted to; leave out guidance_scale, which a simulator "
        "cannot follow.",
    ),
    "prefill_chunk_size": (
        lambda value: value is not None,
        "A simulator reads its prompt in one piece; leave out prefill_chunk_size.",
    ),
    "cache_implementation": (
        lambda value: value not in (None, "dynamic"),
        "The cache {value!r} has no place for adapted weights; leave out cache_implementation.",
    ),
    "assistant_early_exit": (
        lambda value: value is not None,
        "The update is not known after a few layers, so these make no drafts; leave out assistant_early_exit, and pass "
        "prompt_lookup_num_tokens for drafts from the prompt.",
    ),
}
"""Options of generation: which values cannot be followed, and what to do (``{value!r}``: the value)."""
EXPORTED = (
    "A simulator is a program that its executors run, with choices that depend on the text, so torch.export, ONNX and "
    "TorchScript cannot take it; keep it by sim.save_pretrained(OUT), or export the updated auxiliary, an ordinary "
    "model, by sim.adapt(ids).export(OUT)."
)
ELSEWHERE = (
    "The simulator's tensors are not in memory (it is on the device meta, as cpu_offload, disk_offload, "
    "init_empty_weights and the like leave it), and any module may read any of them; load it whole by "
    "tintc.load(OUT), which reads from mapped files what it needs."
)
BATCHED = (
    "torch.func.vmap cannot take a simulator; examples of a batch do not see each other, so pass them as one batch."
)
TRANSFORMED = (
    "Fused execution does not work inside the transforms of torch.func; set sim.executor = 'literal', or use "
    "torch.autograd.grad, which works in both executors."
)
ADAPTERS = (
    "Adapters of peft stand in for a model's layers, and a simulator's executors read its tensors by name, without "
    "calling layers; train sim.trainable('prefixes'), or a parametrisation (torch.nn.utils.parametrize) of low rank."
)
WRAPPED = (
    "{name} is inside another library's module, whose forward would never be called (peft's target_parameters, for "
    "one), so that it would be without effect; unwrap it, and train sim.trainable('prefixes') or a parametrisation "
    "(torch.nn.utils.parametrize) instead."
)


def length_of(input_ids: object) -> int:
    """Return the length of texts, 0 for what is no tensor of them, which is refused elsewhere."""
    if isinstance(input_ids, Tensor):
        return input_ids.shape[-1]
    return 0


def refuse_arguments(given: Mapping[str, Any], length: int, cached: bool) -> None:
    """Raise `InputError` for arguments that `forward` does not have; None says nothing.

    length: of the tokens given; cached: whether a cache or a state is used.
    """
    left = {name: value for name, value in given.items() if value is not None}
    places = left.pop("cache_position", None)
    if places is not None and (cached or not _counts(places, length)):
        raise InputError(
            "A simulator adapts to the whole prompt and counts what its cache holds itself, so cache_position would "
            "not do what it says; leave it out (captum: use_cached_outputs=False), and pass position_ids for other "
            "positions."
        )
    for name in left:
        raise InputError(ARGUMENTS.get(name, f"A simulator's forward has no argument {name!r}; leave it out."))


def _counts(places: object, length: int) -> bool:
    """Return whether these are the places 0, 1, ... of that many tokens."""
    return isinstance(places, Tensor) and places.flatten().tolist() == list(range(length))


def refuse_options(generation_config: Any) -> None:
    """Raise `OptionError` for options of generation that a simulator cannot follow."""
    for name, (refused, why) in GENERATION.items():
        value = getattr(generation_config, name, None)
        if refused(value):
            raise OptionError(why.format(value=value))


def check_cache(cache: object) -> TintCache | None:
    """Return the cache; raise `OptionError` unless it is a simulator's, or None."""
    if cache is not None and not isinstance(cache, TintCache):
        raise OptionError("A simulator goes on from the past_key_values that it has returned, and from no others.")
    return cache


def where_it_can_run(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return a simulator's method that runs a program, guarded.

    It raises `OptionError` where PyTorch traces or transforms it in a way that it does not bear, and where the
    simulator's tensors are not there.
    """

    @wraps(method)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        sim: Any = args[0]
        if is_tracing() or torch.compiler.is_exporting():
            raise OptionError(EXPORTED)
        if sim.device.type == "meta":
            raise OptionError(ELSEWHERE)
        kinds = {transform.key() for transform in retrieve_all_functorch_interpreters()}
        if TransformType.Vmap in kinds:
            raise OptionError(BATCHED)
        if kinds and sim.executor != "literal":
            raise OptionError(TRANSFORMED)
        return method(*args, **kwargs)

    return called


def check_own(module: nn.Module, name: str) -> None:
    """Raise `OptionError` if the module that holds a parameter is not the simulator's own."""
    if not isinstance(module, Container):
        raise OptionError(WRAPPED.format(name=name))


class NoModule(OptionError, NotImplementedError):
    """There is no such module; transformers takes a `NotImplementedError` for that and, where it can, goes on."""


class NoField(OptionError, AttributeError):
    """There is no such field; whoever only asks whether there is one is told no."""


class UnsupportedFeatures:
    """The part of `TintForCausalLM` that refuses."""

    def get_input_embeddings(self) -> nn.Module:
        """Raise `NoModule`: a table of embeddings is a parameter that the executors read."""
        raise NoModule(
            "A simulator has no module of input embeddings, so nothing can be hooked in there (neftune_noise_alpha, "
            "adapters); leave that out, and train sim.tables."
        )

    def add_adapter(self, *_: Any, **__: Any) -> None:
        raise OptionError(ADAPTERS)

    def load_adapter(self, *_: Any, **__: Any) -> None:
        raise OptionError(ADAPTERS)

    def __prepare_scriptable__(self) -> Any:
        """Raise `OptionError`; `torch.jit.script` asks before anything else."""
        raise OptionError(EXPORTED)

    def half(self, *_: Any) -> Any:
        """Raise `OptionError`, before anything is cast."""
        refuse_float16(torch.float16)

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Module:
        raise NoModule(
            "The vocabulary is part of a simulator's program, so it cannot be resized; resize the model it was made "
            "of, and compile that."
        )

    def get_position_embeddings(self) -> nn.Module:
        raise NoModule("A simulator's positions are part of its program; compile with a larger max length instead.")

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        raise OptionError(
            "A simulator has no layers whose activations could be computed twice; leave out gradient checkpointing "
            "(gradient_checkpointing=False, which TRL's trainers must be told), and pass smaller batches."
        )

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *_: Any, **__: Any) -> str:
        """Return the one there is; raise `OptionError` for others. transformers calls it wherever one is asked for."""
        if attn_implementation not in (None, "eager"):
            raise OptionError(
                f"A simulator's attention is its own, so attn_implementation={attn_implementation!r} means nothing; "
                "leave it out. How it is executed is what executor says."
            )
        return "eager"

    def __getstate__(self) -> Any:
        """Raise `ArtefactError`: a folder is checked when it is read and runs no code, unlike a pickle."""
        raise ArtefactError("A simulator is not pickled; keep it by sim.save_pretrained(OUT) and tintc.load(OUT).")

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        """Return a copy as of any module, without asking `__getstate__` above."""
        kind: Any = type(self)
        twin = memo[id(self)] = kind.__new__(kind)
        twin.__setstate__(deepcopy(nn.Module.__getstate__(self), memo))
        if self.has_own_structure():
            twin.trust()
        return twin
