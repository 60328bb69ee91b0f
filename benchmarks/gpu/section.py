"""The section of RESULTS.md and its plots, from the figures that the parts have left, whichever these are."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu.setup import Setup, read_figures
from tintc.ir.simulator.kernels.measured import FILE, Case, as_text
from tintc.ir.simulator.kernels.measured import verdicts as choices

TITLE = "On one GPU"
SECTION = "section.md"
RESULTS = Path(__file__).parents[1] / "RESULTS.md"
FORWARD_TARGET, EXPLICIT_TARGET = 4.0, 0.2
TABLE = "model|dtype|texts|tokens|ms|tokens/s|share of rate|over a forward pass|over explicit tuning|peak GB"
LORA = "model|texts|tokens|simulated ms|adapters ms|adapters, compiled ms|ratio to the faster"
KERNELS = "kernel|calls|ms|share"
PAIRS = "kernel|dtype|runs|why"
ALONE = "model|kernel|dtype|operation|us|us, PyTorch|ratio|results apart"
TWINS = "model|kernel|ms|to none|logits apart"
GRAPHS = "model|texts|tokens|without ms|replayed ms|ratio|capture s|kept GB|logits apart"
DECODE = "model|texts|ours, tokens/s|replayed, tokens/s|transformers', tokens/s|ratio of times"
EXPLAINED = """Random weights in published shapes; half of each text is trained on, every text has an update of its own.
*share of rate*: multiply-adds of the plan per second, of those of a product of 8192 x 8192 matrices in the same dtype
(fp32 with TF32). *over explicit tuning*: of the same texts one by one, in eager mode, from the time of two. *peak*: of
memory beyond the weights. Targets are of 64 texts of 512 tokens in bfloat16."""
ADAPTERS = (
    """The peer in a batch: adapters of rank 8 for every text, in plain autograd (`benchmarks/gpu/lora_peer.py`)."""
)
PAIRED = """Each kernel alone beside PyTorch's operators, launches included; what runs from now on, and the figures that
say so (`tintc/ir/simulator/kernels/measured.json`)."""
TWINNED = """A pass with one kernel of the table (`tintc/ir/simulator/kernels/choice.py`) in the place of PyTorch's
operators, ours in Triton or a library's, and with all of each. A kernel that a pass does not need changes nothing."""
REPLAYED = (
    """Passes over few tokens, launched op by op, and replayed as one CUDA graph that `sim.warm_up` has captured."""
)
DECODED = """New tokens after a prompt of 128 tokens, greedily, the weights adapted to it before;
*replayed*: each token by a CUDA graph, which the ratio is of."""


def write(setup: Setup) -> None:
    """Write ``section.md`` beside the figures, and the section of RESULTS.md where the sizes are not tiny."""
    figures = read_figures(setup.out)
    body = section(figures, setup.out, plots=not setup.tiny and importlib.util.find_spec("matplotlib") is not None)
    print("\n".join(body))
    (setup.out / SECTION).write_text("\n".join(body) + "\n", encoding="utf-8")
    choices = as_text(_machine(figures), _cases(figures))
    (setup.out / FILE.name).write_text(choices, encoding="utf-8")
    if setup.tiny:
        return
    report.write_section("gpu", TITLE, body, RESULTS)
    if _cases(figures) and setup.device.type == "cuda":
        FILE.write_text(choices, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not here: for plots, run `python -m benchmarks.gpu report` on these figures where it is.")


def section(figures: list[dict[str, Any]], out: Path, plots: bool) -> list[str]:
    """Return its lines; parts that are missing are named."""
    by_part = {part: [line for line in figures if line["part"] == part and _is_shown(line)] for part in PARTS}
    lines: list[str] = []
    for part, make in PARTS.items():
        if by_part[part]:
            lines += ["", *make(by_part)]
    missing = [part for part in PARTS if not by_part[part]]
    if missing:
        lines += ["", f"Not measured in this run: {', '.join(missing)}."]
    for line in figures:
        if not _is_shown(line):
            what = ", ".join(str(value) for key, value in line.items() if key not in ("refused", "failed"))
            lines += ["", f"Not measured: {what} ({line.get('failed') or line['refused']})."]
    if plots and by_part["table"]:
        lines += ["", *_plots(by_part["table"])]
    return lines[1:]


def _is_shown(line: dict[str, Any]) -> bool:
    """Return whether a line has figures; the table has a row for what is refused, too."""
    return "failed" not in line and ("refused" not in line or line["part"] == "table")


def _machine(figures: list[dict[str, Any]]) -> str:
    """Return what was measured on, and when."""
    known = next((line for line in figures if line["part"] == "ceilings" and _is_shown(line)), None)
    if known is None:
        return f"a GPU, {date.today()}"
    return f"{known['device']}, torch {known['torch']}, {date.today()}"


def _cases(figures: list[dict[str, Any]]) -> list[Case]:
    """Return what was measured of kernels alone, where they ran."""
    lines = [line for line in figures if line["part"] == "pairs" and line.get("ran")]
    return [Case(*(line[field] for field in Case._fields)) for line in lines]


def _ceilings(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    found = by_part["ceilings"][-1]
    rates = (f"{2 * found[name] / 1e12:.3g}" for name in ("bf16", "fp32"))
    return [
        f"`benchmarks/gpu.sh`, {date.today()}. {found['device']}, torch {found['torch']}. Products in bfloat16 and "
        f"float32 (TF32): {' and '.join(rates)} TFLOP/s; a copy: {found['copy'] / 1e12:.3g} TB/s, read and written."
    ]


def _table(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    ceilings = by_part["ceilings"][-1:] or [{}]
    rows = [_row(line, ceilings[0]) for line in _ordered(by_part["table"])]
    return [*EXPLAINED.splitlines(), "", *report.table([TABLE.split("|"), *rows])]


def _row(line: dict[str, Any], ceilings: dict[str, Any]) -> list[str]:
    dtype = line["dtype"].removeprefix("torch.")
    cells = [line["model"], dtype, str(line["batch"]), str(line["length"])]
    if "refused" in line:
        return [*cells, line["refused"], *["-"] * 5]
    rate = ceilings.get({"bfloat16": "bf16"}.get(dtype, "fp32"))
    share = f"{line['products'] / line['fused'] / rate:.2f}" if rate else "-"
    peak = f"{line['peak'] / 1e9:.2f}" if line["peak"] is not None else "-"
    over = [line["fused"] / line[name] for name in ("forward", "explicit")]
    ratios = [f"{ratio:.2f}" for ratio in over]
    if (dtype, line["batch"], line["length"]) == ("bfloat16", 64, 512):
        targets = (FORWARD_TARGET, EXPLICIT_TARGET)
        ratios = [f"{r:.2f} {report.verdict(r, target)}" for r, target in zip(over, targets, strict=True)]
    tokens = line["batch"] * line["length"] / line["fused"]
    return [*cells, f"{line['fused'] * 1e3:.1f}", f"{tokens:,.0f}", share, *ratios, peak]


def _lora(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = []
    for model in dict.fromkeys(line["model"] for line in by_part["lora"]):
        lines = [line for line in by_part["lora"] if line["model"] == model]
        first = lines[0]
        taken = {line["compiled"]: line["seconds"] for line in lines}
        ours = [
            line["fused"]
            for line in by_part["table"]
            if (line["model"], line["batch"], line["length"]) == (model, first["batch"], first["length"])
            and line["dtype"] == "torch.bfloat16"
            and "fused" in line
        ]
        simulated = f"{ours[-1] * 1e3:.1f}" if ours else "-"
        ratio = f"{ours[-1] / min(taken.values()):.2f}" if ours else "-"
        times = [f"{taken[kind] * 1e3:.1f}" if kind in taken else "-" for kind in (False, True)]
        rows.append([model, str(first["batch"]), str(first["length"]), simulated, *times, ratio])
    return [*ADAPTERS.splitlines(), "", *report.table([LORA.split("|"), *rows])]


def _kernels(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines: list[str] = []
    for found in by_part["kernels"]:
        idle = max(0.0, 1 - found["busy"] / found["wall"])
        lines += [
            "",
            f"{found['model']}, {found['batch']} texts of {found['length']} tokens: {found['wall'] * 1e3:.1f} ms; "
            f"kernels run for {found['busy'] * 1e3:.1f} ms (idle {idle:.0%}), in {found['calls']} calls.",
            "",
        ]
        rows = [
            [
                f"`{kernel['name'][:70]}`".replace("|", "/"),
                str(kernel["calls"]),
                f"{kernel['seconds'] * 1e3:.2f}",
                f"{kernel['seconds'] / max(found['busy'], 1e-9):.0%}",
            ]
            for kernel in found["kernels"]
        ]
        lines += report.table([KERNELS.split("|"), *rows])
    return lines[1:]


def _pairs(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    every = by_part["pairs"]
    verdicts = choices(_machine([*by_part["ceilings"], *every]), _cases(every))
    decided = [
        [kernel, dtype, "yes" if verdict.runs else "no", verdict.reason]
        for (kernel, dtype), verdict in verdicts.items()
    ]
    rows = []
    for line in every:
        times = [f"{line[name] * 1e6:,.1f}" for name in ("other", "torch")]
        ratio = f"{line['other'] / line['torch']:.2f}" if line["ran"] else "not run here"
        about = [line[name] for name in ("model", "kernel", "dtype", "size")]
        rows.append([*about, *times, ratio, f"{line['apart']:.1e}"])
    return [
        *PAIRED.splitlines(),
        "",
        *report.table([PAIRS.split("|"), *decided]),
        "",
        *report.table([ALONE.split("|"), *rows]),
    ]


def _twins(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = []
    plain = {line["model"]: line["seconds"] for line in by_part["twins"] if line["kernel"] == "none"}
    for line in by_part["twins"]:
        ratio = f"{line['seconds'] / plain[line['model']]:.3f}" if line["model"] in plain else "-"
        rows.append([line["model"], line["kernel"], f"{line['seconds'] * 1e3:.1f}", ratio, f"{line['apart']:.1e}"])
    return [*TWINNED.splitlines(), "", *report.table([TWINS.split("|"), *rows])]


def _graphs(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = []
    for line in by_part["graphs"]:
        sizes = [line["model"], str(line["batch"]), str(line["length"])]
        times = [f"{line[name] * 1e3:.1f}" for name in ("without", "seconds")]
        kept = f"{line['kept'] / 1e9:.2f}" if line["kept"] is not None else "-"
        ratio = f"{line['seconds'] / line['without']:.2f}" if line["captured"] else "not captured"
        rows.append([*sizes, *times, ratio, f"{line['capture']:.1f}", kept, f"{line['apart']:.1e}"])
    return [*REPLAYED.splitlines(), "", *report.table([GRAPHS.split("|"), *rows])]


def _decode(by_part: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = []
    for line in by_part["decode"]:
        new = line["batch"] * line["new"]
        speeds = [f"{new / line[name]:,.0f}" for name in ("ours", "replayed", "theirs")]
        rows.append([line["model"], str(line["batch"]), *speeds, f"{line['replayed'] / line['theirs']:.2f}"])
    return [*DECODED.splitlines(), "", *report.table([DECODE.split("|"), *rows])]


PARTS = {
    "ceilings": _ceilings,
    "table": _table,
    "lora": _lora,
    "kernels": _kernels,
    "pairs": _pairs,
    "twins": _twins,
    "graphs": _graphs,
    "decode": _decode,
}
"""What makes the lines of each part, from all figures by part."""


def _ordered(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(lines, key=lambda line: (line["model"], line["dtype"], line["batch"], line["length"]))


def _plots(lines: list[dict[str, Any]]) -> list[str]:
    measured = [line for line in _ordered(lines) if "fused" in line and line["dtype"] == "torch.bfloat16"]
    speeds = []
    ratios = []
    for line in measured:
        label = f"{line['model']}, {line['batch']} x {line['length']}"
        speeds.append(report.Bar(label, [line["batch"] * line["length"] / line["fused"] / 1e3]))
        ratios.append(report.Bar(label, [line["fused"] / line["forward"]], FORWARD_TARGET))
    return [
        report.plot_bars("gpu_tokens", speeds, "thousand tokens per second"),
        report.plot_bars("gpu_forward", ratios, "time, simulated update / plain forward pass"),
    ]
