"""Models of images and text compile as the decoder of text inside; what is compared is the whole wrapper on texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import relative, token_ids
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForImageTextToText
from wrappers import TYPES, wrapper

import tintc
from tintc.errors import InputError
from tintc.frontend.graph.calling import text_decoder
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.wrappers import TEXT_PATH
from tintc.ir.auxiliary.interpreter import forward, loading
from tintc.ir.inputs import resolve_inputs
from tintc.reference.verify import verify
from tintc.stages import import_auxiliary
from tools.sweep.tiny import VOCAB

TOLERANCE = 1e-9
"""Of logits in fp64."""


ONE_LAYER: dict[str, Any] = {"num_hidden_layers": 1}
FULL = ONE_LAYER | {"layer_types": ["full_attention"]}
SMALLER: dict[str, Any] = {
    **dict.fromkeys(set(TYPES) - {"gemma3", "mllama"}, ONE_LAYER),
    "gemma4": FULL,
    "cohere2_vision": FULL,
}
"""Types of which one layer is enough: what a wrapper does before and behind its layers is looked at."""
SELDOM = ("mistral3", "smolvlm")
"""Types whose wrappers do no more than LLaVA's to a text without images."""


class Wide(TorchFunctionMode):
    """Leaves out a model's casts to fp32, which its norms and rotary angles have and a program does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if one is torch.float32 else one for one in args]
        kwargs = {key: torch.float64 if one is torch.float32 else one for key, one in (kwargs or {}).items()}
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SELDOM else kind for kind in TYPES]
)
@torch.no_grad()
def test_the_decoder_in_a_wrapper(kind: str) -> None:
    """Its logits are the whole wrapper's, padding on either side included, and the wrapper is left as it was."""
    model = wrapper(kind, **SMALLER.get(kind, {}))
    ids = token_ids(2, 11, VOCAB)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    mask[1, -2:] = 0
    inputs = resolve_inputs(ids, attention_mask=mask)
    # mllama's wrapper counts positions by itself
    placed = {} if kind == "mllama" else {"position_ids": inputs.position_ids}
    with Wide():
        right = model(input_ids=ids, attention_mask=mask, **placed).logits
    narrow = model(input_ids=ids, attention_mask=mask, **placed).logits
    source = load_auxiliary(model)
    auxiliary = import_auxiliary(source)
    logits = forward(
        auxiliary.program, loading(auxiliary.program, auxiliary.tensors, torch.float64, ids.device), inputs
    )
    real = mask.bool()
    assert relative(logits[real], right[real]) < TOLERANCE
    assert type(text_decoder(model)).__name__ in source.provenance[TEXT_PATH]
    assert torch.equal(model(input_ids=ids, attention_mask=mask, **placed).logits, narrow)


def test_a_wrapper_s_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It compiles as its object does, says so, keeps saying so, refuses tokens of images, and exports a wrapper."""
    model = wrapper("qwen3_vl", **ONE_LAYER)
    model.config.image_token_id = 7
    model.save_pretrained(tmp_path / "model")
    sim = tintc.compile(tmp_path / "model", output=tmp_path / "sim", inner_lr=1e-2)
    assert "What is compiled is the decoder Qwen3VLTextModel in Qwen3VLForConditionalGeneration" in caplog.text
    assert "the decoder Qwen3VLTextModel" in (tmp_path / "sim" / "README.md").read_text()
    sim = tintc.load(tmp_path / "sim")
    ids = torch.arange(8, 24)[None]
    with torch.no_grad():
        out = sim(ids, return_before=True)
        before = out.logits_before
        assert relative(before, model(input_ids=ids).logits) < 1e-5  # which drops to fp32 inside
        literal = tintc.load(tmp_path / "sim", executor="literal")(ids)
        assert relative(literal.logits, out.logits) < 1e-9 * relative(out.logits, before)
    verdict = verify(str(tmp_path / "sim"), sim, load_auxiliary(tmp_path / "model"), ids[0], 8)
    assert verdict.ok, verdict.problems
    image = ids.clone()
    image[0, 3] = 7
    for run in (sim, sim.adapt, lambda bad: sim.generate(bad, max_new_tokens=1)):
        with pytest.raises(InputError, match=r"Token id 7 stands for an image.* leave such tokens out"):
            run(image)
    state = sim.adapt(ids)
    state.export(tmp_path / "updated", model=tmp_path / "model")
    updated = AutoModelForImageTextToText.from_pretrained(tmp_path / "updated")
    with torch.no_grad():
        assert relative(updated(input_ids=ids).logits, sim(ids, state=state).logits) < 1e-5
        assert relative(updated(input_ids=ids).logits, before) > 1e-3
