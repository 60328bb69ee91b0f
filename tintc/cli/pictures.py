"""What the commands with `--png` share; matplotlib is imported only where a picture is asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tintc.bounded import check_path
from tintc.errors import OptionError
from tintc.runtime.artefact.one_file import staged_file


def check_plot(png: Path) -> None:
    """Raise `OptionError` where a picture cannot be drawn or written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("--png needs matplotlib, which is not installed: pip install matplotlib, or leave out --png.")
    check_path(png, OptionError)
    if not png.parent.is_dir() or png.is_dir():
        raise OptionError(f"Cannot write {png}: it must be a file in a folder that exists.")


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files and needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure: Any, png: Path) -> None:
    """Write a figure of matplotlib, in one step, and close it; raise `OptionError` if the disk will not take it."""
    try:
        with staged_file(png.absolute()) as stream:
            figure.savefig(stream, format="png", dpi=120)
    except OSError as error:
        raise OptionError(f"Cannot write {png}: {error.strerror or error}.") from error
    finally:
        pyplot().close(figure)
