"""What other libraries pass to a simulator and ask of it: each does what it says, or is refused in one sentence.

fp32 unless said otherwise; the libraries that are not among the requirements are simulated by what they do.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny_models
import torch
from programs import import_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import DynamicCache, PreTrainedTokenizerFast, pipeline

import tintc
from tintc.errors import InputError, OptionError, TintcError
from tintc.runtime.model import registration
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = tiny_models.token_ids(2, 12, vocab=22)
UP = "prefixes.model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def folder(llama_sim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room beside it."""
    return Path(shutil.copytree(llama_sim, tmp_path_factory.mktemp("clients") / "sim"))


@pytest.fixture(scope="module")
def sim(folder: Path) -> TintForCausalLM:
    """For tests that change nothing."""
    return tintc.load(folder).trainable("prefixes")


def letters() -> PreTrainedTokenizerFast:
    """A token for each letter, as byte-level tokenizers write it."""
    base = Tokenizer(models.BPE({letter: at for at, letter in enumerate("abcdefghijklmnopqrstuvw")}, []))
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=base, bos_token="a", eos_token="a", pad_token="a")


def test_stop_strings(sim: TintForCausalLM) -> None:
    """Every way transformers offers: it hands the tokenizer on to what prepares a forward pass."""
    tokenizer, state = letters(), sim.adapt(IDS[:1])
    plain = sim.generate(IDS[:1], max_new_tokens=6, do_sample=False, eos_token_id=-1)
    stop = str(tokenizer.decode(plain[0, 14:15]))
    first = 12 + str(tokenizer.decode(plain[0, 12:])).index(stop)
    given: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "tokenizer": tokenizer, "eos_token_id": -1}
    assert torch.equal(sim.generate(IDS[:1], stop_strings=[stop], **given), plain[:, : first + 1])
    assert sim.generate(IDS[:1], stop_strings=[stop], state=state, **given).shape[1] <= 18
    assert sim.generate(IDS[:1], token_healing=True, **given).shape[1] > 12
    written = pipeline("text-generation", model=sim, tokenizer=tokenizer)
    assert written("abcdefgh", stop_sequence=stop, max_new_tokens=5)[0]["generated_text"].startswith("abcdefgh")
    sim.generation_config.stop_strings = [stop]
    try:
        assert torch.equal(sim.generate(IDS[:1], **given), plain[:, : first + 1])
    finally:
        sim.generation_config.stop_strings = None


@pytest.mark.parametrize("where", ["forward", "generate"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("inputs_embeds", "pass input_ids, and change embeddings by sim.edit"),
        ("token_type_ids", "return_token_type_ids=False"),
        ("cu_seq_lens_q", "pass one text a row"),
        ("head_mask", "sim.edit"),
    ],
)
def test_arguments_of_other_models(sim: TintForCausalLM, where: str, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        getattr(sim, where)(IDS, **{name: torch.zeros_like(IDS)})


def test_arguments_that_say_nothing_or_that_nobody_knows(sim: TintForCausalLM) -> None:
    with torch.no_grad():
        right = sim(IDS).logits
        given = {"cache_position": torch.arange(12), "use_cache": False, "output_router_logits": None}
        assert torch.equal(sim(IDS, **given).logits, right)
    for wrong in ({"cache_position": torch.arange(1, 13)}, {"cache_position": torch.arange(12), "use_cache": True}):
        with pytest.raises(InputError, match=r"captum: use_cached_outputs=False"):
            sim(IDS, **wrong)
    with pytest.raises(InputError, match="no argument 'trian_mask'; leave it out"):
        sim(IDS, trian_mask=IDS)
    for nothing in ({}, {"input_ids": None}):
        with pytest.raises(InputError, match="input_ids must be"):
            sim(**nothing)


def test_labels_of_every_integer_type_and_shifted_ones(sim: TintForCausalLM) -> None:
    """Shifted ones, which a library has shifted before it cut the text, take the place of labels."""
    labels = IDS.clone()
    labels[:, :4] = -100
    with torch.no_grad():
        right = sim(IDS, labels=labels).loss
        assert torch.equal(sim(IDS, labels=labels.int()).loss, right)
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        assert torch.equal(sim(IDS, shift_labels=shifted).loss, right)
        assert torch.equal(sim(IDS, labels=torch.zeros_like(IDS), shift_labels=shifted).loss, right)


def test_options_of_generation(sim: TintForCausalLM) -> None:
    for given, says in (
        ({"assistant_early_exit": 1}, "leave out assistant_early_exit"),
        ({"past_key_values": ()}, "past_key_values that it has returned"),
        ({"past_key_values": DynamicCache()}, "past_key_values that it has returned"),
    ):
        with pytest.raises(OptionError, match=says):
            sim.generate(IDS, max_new_tokens=2, **given)


def of_prefixes(sim: TintForCausalLM) -> tuple[Callable[[Any], Tensor], dict[str, Tensor]]:
    """Something to differentiate, and what with respect to."""
    chosen = {name: p.detach() for name, p in sim.named_parameters() if name.startswith("prefixes.")}
    return lambda given: torch.func.functional_call(sim, given, (IDS,)).logits.square().sum(), chosen


def offloaded(folder: Path, offload: Callable[[Any], Any]) -> Any:
    sim = tintc.load(folder)
    offload(sim)
    return sim(IDS)


PLACES: dict[str, tuple[Callable[[TintForCausalLM, Path], Any], str]] = {
    "torch.export": (lambda sim, _: torch.export.export(sim, (IDS,)), "torch.export, ONNX and TorchScript"),
    "TorchScript": (lambda sim, _: torch.jit.trace(sim, (IDS,)), "torch.export, ONNX and TorchScript"),
    "TorchScript's compiler": (lambda sim, _: torch.jit.script(sim), "torch.export, ONNX and TorchScript"),
    "peft's adapters": (lambda sim, _: sim.add_adapter(None), r"train sim\.trainable\('prefixes'\)"),
    "stored adapters": (lambda sim, folder: sim.load_adapter(folder), r"train sim\.trainable\('prefixes'\)"),
    "peft's prompts": (lambda sim, _: sim.tables(IDS), "only holds modules and tensors"),
    "cpu_offload": (lambda _, folder: offloaded(folder, accelerate.cpu_offload), "tensors are not in memory"),
    "disk_offload": (
        lambda _, folder: offloaded(
            folder, lambda one: accelerate.disk_offload(one, tempfile.mkdtemp(dir=folder.parent))
        ),
        "tensors are not in memory",
    ),
    "vmap": (lambda sim, _: torch.func.vmap(lambda ids: sim(ids[None]).logits)(IDS), "pass them as one batch"),
    "grad": (lambda sim, _: torch.func.grad(of_prefixes(sim)[0])(of_prefixes(sim)[1]), "set sim.executor = 'literal'"),
    "resizing": (lambda sim, _: sim.resize_token_embeddings(40), "cannot be resized"),
    "checkpointing": (lambda sim, _: sim.gradient_checkpointing_enable(), "gradient_checkpointing=False"),
    "TRL's base model": (lambda sim, _: sim(IDS).last_hidden_state, "TRL's trainers ask for one"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore")
def test_where_it_cannot_run(sim: TintForCausalLM, folder: Path, place: str) -> None:
    run, says = PLACES[place]
    with pytest.raises(TintcError, match=says) as refused:
        run(sim, folder)
    assert str(refused.value).count(". ") == 0


@pytest.mark.filterwarnings("ignore")
def test_what_asks_no_one_before_has_the_sentence_inside(sim: TintForCausalLM) -> None:
    """PyTorch's own message comes first, and says why and what to do."""
    for run in (
        lambda: torch.export.export(sim, (IDS,), strict=True),
        lambda: torch.compile(sim, fullgraph=True)(IDS),
    ):
        with pytest.raises(Exception, match=r"sim\.adapt\(ids\)\.export\(OUT\) writes the updated auxiliary"):
            run()


def test_transformers_finds_the_class_that_a_folder_names(folder: Path) -> None:
    """By its name, as `transformers serve` looks for it; in the transformers that tintc has seen, since helpers of its
    own, which other tests may have called, import it anew."""
    (name,) = tintc.TintConfig.from_pretrained(folder).architectures
    assert getattr(registration.transformers, name) is TintForCausalLM


def test_asking_is_no_error(sim: TintForCausalLM) -> None:
    with torch.no_grad():
        assert not hasattr(sim(IDS), "last_hidden_state")


def test_transforms_of_torch_func_run_literally(folder: Path) -> None:
    """Gradients are those of plain autograd, to 1e-4; a directional derivative is their sum, to 1e-3."""
    sim = tintc.load(folder, executor="literal")
    of, chosen = of_prefixes(sim)
    found = torch.func.grad(of)(chosen)
    right = torch.autograd.grad(sim(IDS).logits.square().sum(), [sim.get_parameter(name) for name in chosen])
    for gradient, one in zip(found.values(), right, strict=True):
        assert tiny_models.relative(gradient.detach(), one.detach()) < 1e-4
    result: Any = torch.func.jvp(of, (chosen,), ({name: torch.ones_like(x) for name, x in chosen.items()},))
    along = result[1]
    total = torch.stack([gradient.sum() for gradient in right]).sum()
    assert float((along - total).abs() / total.abs()) < 1e-3


class Wrapper(nn.Module):
    """As peft puts one around the module that has a target parameter."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base_layer = base
        self.weight = nn.Parameter(base.get_parameter("weight").detach().clone())


@pytest.mark.parametrize("name", [UP, "tables.model.embed_tokens"])
def test_a_wrapped_module_is_not_passed_over(folder: Path, name: str) -> None:
    """Its forward, where a library adds what it has, would never be called."""
    sim = tintc.load(folder)
    above, _, leaf = name.rpartition(".")
    setattr(sim.get_submodule(above), leaf, Wrapper(sim.get_submodule(name)))
    with pytest.raises(OptionError, match=f"{name}.* is inside another library's module"), torch.no_grad():
        sim(IDS)


def test_peft(folder: Path) -> None:
    """The two routes by which it reaches a simulator's parameters."""
    peft = pytest.importorskip("peft")
    for name in (f"{UP}.weight", "tables.model.embed_tokens.weight"):
        adapted = peft.get_peft_model(tintc.load(folder), peft.LoraConfig(r=2, target_parameters=[name]))
        with pytest.raises(OptionError, match="inside another library's module"):
            adapted(input_ids=IDS)


class LowRank(nn.Module):
    """What LoRA adds to a weight ``[K', S, din]``."""

    def __init__(self, weight: Tensor, rank: int = 2):
        super().__init__()
        self.down, self.up = (
            nn.Parameter(torch.full(size, 0.1)) for size in ((rank, weight.shape[-1]), (*weight.shape[:-1], rank))
        )

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_parametrised_prefixes(folder: Path, executor: str) -> None:
    """As one that holds the sum, and trained: LoRA by torch's own means."""
    sim, other = tintc.load(folder, executor=executor).trainable("prefixes"), tintc.load(folder, executor=executor)
    added = LowRank(sim.get_parameter(f"{UP}.weight"))
    parametrize.register_parametrization(sim.get_submodule(UP), "weight", added)
    with torch.no_grad():
        other.get_parameter(f"{UP}.weight").add_(added.up @ added.down)
        assert tiny_models.relative(sim(IDS).logits, other(IDS).logits) < 1e-6
    sim(IDS, labels=IDS).loss.backward()
    assert sim.last_executor == executor
    for parameter in (added.up, added.down):
        assert parameter.grad is not None and float(parameter.grad.norm()) > 0


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny_models.llama(n_layers=1, n_heads=3, n_kv_heads=1, head_dim=4, d_ff=20),
        lambda: tiny_models.gpt2(n_heads=3, head_dim=4, d_ff=20),
    ],
    ids=["llama", "gpt2"],
)
def test_gradients_reach_what_is_handed_out(model: Callable[[], Any]) -> None:
    """Every hidden state, attention and captured token value, the same in both executors: fp64, 1e-9.

    Activations that the backward pass starts from have other readers in fused execution than literally.
    """
    sim, found = import_model(model()).compile(max_length=16, inner_lr=0.02), []
    starts = {point.name for point in sim.capture_points() if not point.editable and not point.show}
    for sim.executor in ("fused", "literal"):
        with sim.capture("pass*") as seen:
            out = sim(IDS, labels=IDS, output_hidden_states=True, output_attentions=True)
        handed = dict(seen)
        for field in ("hidden_states", "attentions", "hidden_states_before", "attentions_before"):
            handed |= {f"{field}.{at}": tensor for at, tensor in enumerate(out[field])}
        kept = {name: tensor for name, tensor in handed.items() if name not in starts}
        found.append(dict(zip(kept, torch.autograd.grad(out.loss, list(kept.values())), strict=True)))
    assert len(found[0]) > 30
    for name, gradient in found[0].items():
        assert float((gradient - found[1][name]).norm()) <= 1e-9 * float(found[1][name].norm()), name


def test_the_last_outputs_are_those_after_the_update(sim: TintForCausalLM) -> None:
    """As every tool indexes them."""
    with torch.no_grad():
        out = sim(IDS, output_hidden_states=True, output_attentions=True)
        assert out[-1] is out.attentions and out[-2] is out.hidden_states and out[0] is out.logits
        hidden = sim(IDS, output_hidden_states=True, return_dict=False)
    assert torch.equal(hidden[-1][-1], out.hidden_states[-1])
