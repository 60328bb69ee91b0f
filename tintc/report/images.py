"""The page's charts as PNG files, and the JavaScript that draws them on the page."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tintc.errors import OptionError

NEEDED = {"altair": "altair", "vl_convert": "vl-convert-python", "fast_sugiyama": "fast-sugiyama"}
"""Modules that a report needs, and the packages that have them."""
WIDTH = 720
SCALE = 2.0


def check_installed() -> None:
    """Raise `OptionError` where a package is missing that a report needs."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise OptionError(
            f"A report needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install '.[report]'."
        )


@cache
def chart_script() -> str:
    """Return the JavaScript of Vega, Vega-Lite and vega-embed in one: it defines ``vegaEmbed``."""
    import vl_convert

    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue] -- its stub has no default


def write_images(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every chart as ``NAME.png`` into a folder, which is made if there is none; raise `OptionError` where that
    fails."""
    import vl_convert

    written: list[Path] = []
    try:
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            spec = {**figure, "usermeta": {}} | {"width": WIDTH, "background": "white"}
            path = folder / f"{name}.png"
            path.write_bytes(vl_convert.vegalite_to_png(spec, scale=SCALE))
            written.append(path)
    except OSError as error:
        raise OptionError(f"Cannot write images to {folder}: {error.strerror or error}.") from error
    return written
