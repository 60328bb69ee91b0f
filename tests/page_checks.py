"""What the pages say of the results of their blocks, by page: `CHECKS` takes the names that a page has defined.

`shown` among them is what its commands have printed. Logits of the same model in fp64 and fp32 differ by 1e-4 at most,
relative to the largest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pages
import torch
from tiny_models import relative

Names = dict[str, Any]


def readme(seen: Names) -> None:
    """The numbers that it shows are printed, to 1e-3."""
    assert not seen["out"].logits.equal(seen["out"].logits_before)
    (output,) = [text for language, text in pages.blocks("README.md") if language == "text"]
    for line in output.splitlines():
        name, number = line.split()
        printed = re.search(rf"{name}\s+(\S+)", seen["shown"])
        assert printed is not None and abs(float(printed[1]) / float(number) - 1) < 1e-3, line


def guide(seen: Names) -> None:
    assert not seen["out"].logits.equal(seen["out"].logits_before)
    assert relative(seen["exact"].logits_before, seen["out"].logits_before) < 1e-4
    assert "sim.descent" in seen["shown"] or "descent" in seen["shown"]


def few_shot_prompts(seen: Names) -> None:
    prompt, out = seen["prompt"], seen["out"]
    targets = prompt.input_ids[0][prompt.loss_mask[0]]
    assert seen["sim"].tokenizer.decode(targets).split() == ["bad", "good"]
    assert not out.logits.equal(out.logits_before)
    assert seen["counted"].logits.shape[1] == prompt.input_ids.shape[1], "the same tokens, all of them targets"
    assert seen["masked"].isfinite().all()


def choosing_a_rate(seen: Names) -> None:
    assert "1e-05" in seen["shown"] and Path("sim-normalised/config.json").exists()


def looking_inside(seen: Names) -> None:
    assert seen["drift"].shape == (1, seen["ids"].shape[1]) and float(seen["drift"].sum()) > 0
    assert not seen["patched"].equal(seen["out"].logits)
    assert seen["role"].phase == "descent" and "4.mlp.up_proj.weight" in seen["role"].parameter
    assert "descent" in seen["shown"]
    assert seen["norms"] and seen["literal"].logits.isfinite().all() and seen["sim"].last_executor == "literal"


def generating(seen: Names) -> None:
    assert seen["text"].shape[1] == seen["ids"].shape[1] + 20
    assert Path("updated/config.json").exists() and Path("adapter/adapter_config.json").exists()


def training(seen: Names) -> None:
    assert seen["losses"][-1] < seen["losses"][0]
    assert Path("sim-trained/config.json").exists() and Path("out").exists()


def many_gpus(seen: Names) -> None:
    for name in ("parts", "fitting"):
        assert relative(seen[name], seen["whole"]) < 1e-5
    assert "perplexity_after" in seen["shown"]


def own_decoders(seen: Names) -> None:
    assert seen["verdict"].ok
    with torch.no_grad():
        after = seen["updated"](seen["nano_ids"])[0]
        adapted = seen["nano_sim"](seen["nano_ids"], state=seen["nano_state"]).logits
    assert relative(after, adapted) < 1e-4


def streams(seen: Names) -> None:
    """A story is predicted better by what has learnt its beginning."""
    stream = seen["stream"]
    assert stream.perplexity_streamed < 0.97 * stream.perplexity_frozen
    assert f"{stream.perplexity_streamed:.3g}" in seen["shown"]
    assert seen["both"].examples == 4 and Path("adapter/adapter_config.json").exists()
    assert Path("end.safetensors").exists()


def mixers(seen: Names) -> None:
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = seen["sim"](ids, return_before=True).logits_before
        assert relative(before, seen["model"](ids)) < 1e-4


def approximations(seen: Names) -> None:
    assert relative(seen["exact"].logits_before, seen["simulated"].logits_before) < 1e-9
    assert not seen["scores"].logits.equal(seen["exact"].logits)


def modules(seen: Names) -> None:
    assert seen["patched"].isfinite().all() and seen["role"].phase == "backward"


def report(seen: Names) -> None:
    assert Path("report.html").stat().st_size > 100_000
    length = seen["ids"].shape[1]
    assert {matrix.shape for matrix in seen["by_layer"](seen["updates"]).values()} == {(length, length)}


def tutorial(seen: Names) -> None:
    out, half, held_out = seen["out"], seen["half"], seen["held_out"]
    assert held_out(out.logits, half) < held_out(out.logits_before, half)
    exact = seen["exact"]
    assert relative(exact.logits_before, out.logits_before) < 1e-4
    assert 0.5 < float(torch.cosine_similarity(*seen["updates"], dim=0)) < 0.99
    assert exact.losses[1] < exact.losses[0] and held_out(exact.logits, half) > held_out(out.logits, half)
    assert len(exact.gradients) == 2 and not any("embed" in name for name in exact.gradients[0])
    assert not seen["gentle"].logits.equal(out.logits)
    assert not any(seen[name].logits.equal(seen["gentle"].logits) for name in ("slower", "top"))
    tutorial_few_shot(seen)
    assert seen["drift"].shape == (1, seen["ids"].shape[1]) and float(seen["drift"].sum()) > 0
    assert not seen["patched"].equal(out.logits)
    assert seen["role"].phase == "descent" and "4.mlp.up_proj.weight" in seen["role"].parameter
    assert seen["norms"] and seen["literal"].logits.isfinite().all()
    assert seen["text"].shape[1] == seen["prompt"].shape[1] + 20
    assert seen["losses"][-1] < seen["losses"][0]
    assert Path("sim-trained/config.json").exists() and Path("story.state").exists()


def tutorial_few_shot(seen: Names) -> None:
    """The targets are the labels, and the update has made their first tokens likelier after the query."""
    few, guess = seen["few"], seen["guess"]
    targets = few.input_ids[0][few.loss_mask[0]]
    assert seen["sim"].tokenizer.decode(targets).split() == ["bad", "bad", "good", "good"]
    likely = [logits[0, -1].softmax(-1)[targets[[0, -1]]].sum() for logits in (guess.logits_before, guess.logits)]
    assert likely[1] > likely[0]


CHECKS: dict[str, Callable[[Names], None]] = {
    "README.md": readme,
    "docs/approximations.md": approximations,
    "docs/choosing-a-rate.md": choosing_a_rate,
    "docs/few-shot-prompts.md": few_shot_prompts,
    "docs/generating.md": generating,
    "docs/guide.md": guide,
    "docs/looking-inside.md": looking_inside,
    "docs/many-gpus.md": many_gpus,
    "docs/mixers.md": mixers,
    "docs/modules.md": modules,
    "docs/own-decoders.md": own_decoders,
    "docs/report.md": report,
    "docs/streams.md": streams,
    "docs/training.md": training,
    "docs/tutorial.md": tutorial,
}
"""Pages without an entry are only to run."""
