"""Texts for language modelling, as the paper's Table 1 takes them: rows of a dataset, tokenised one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tintc.errors import InputError

WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")
"""The dataset and the configuration that the name ``wikitext`` stands for on the hub."""
WIKITEXT_FILES = {"test": "wikitext/wiki.test.raw", "validation": "wikitext/wiki.valid.raw"}
"""Where a folder of data has them."""
VARIABLE = "TINTC_DATA"
"""Names a folder of data where none is passed."""
HELD_BACK = 5
"""One part in so many of a text's rows is for choosing rates, where there is no other text for that."""


def data_folder(chosen: Path | None) -> Path | None:
    """Return the folder of data: what was chosen, or what `VARIABLE` names, or ``data`` or ``shared/data`` in the
    working folder or one above it; None if there is none."""
    if chosen is None and os.environ.get(VARIABLE):
        chosen = Path(os.environ[VARIABLE])
    if chosen is not None:
        if not chosen.is_dir():
            raise InputError(f"{chosen} is no folder; pass one with data to --data.")
        return chosen
    here = Path.cwd()
    for folder in (here, *here.parents):
        for name in ("data", "shared/data"):
            if any((folder / name / part).is_dir() for part in ("wikitext", "classification")):
                return folder / name
    return None


def rows_of(dataset: str, split: str, data: Path | None) -> list[str]:
    """Return the rows of a split, ``test`` or ``validation``: the lines of a file, or those of a dataset.

    dataset: a UTF-8 file (which is the test split), ``wikitext``, or the id of a dataset on the hub with a column
    ``text``. data: a folder to look for ``wikitext`` in first. Raises `InputError` if it cannot be read.
    """
    if Path(dataset).is_file():
        return lines_of(Path(dataset))
    if dataset == "wikitext" and data is not None and (data / WIKITEXT_FILES[split]).is_file():
        return lines_of(data / WIKITEXT_FILES[split])
    name: tuple[str, ...] = (dataset,)
    if dataset == "wikitext":
        name = WIKITEXT
    return [str(text) for text in from_hub(name, split, "text")]


def lines_of(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file with their ends."""
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from error


def from_hub(name: Sequence[str], split: str, column: str) -> Any:
    """Return a column of a dataset, by the package `datasets`; raise `InputError` if it is not to be had."""
    shown = "/".join(name)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"{shown} is no file here, and datasets of the hub need the package datasets: pip install datasets. Or "
            "pass a file, or a folder of data to --data."
        ) from error
    try:
        return load_dataset(*name, split=split)[column]
    except Exception as error:  # of the network, of the hub, of the dataset's form: many kinds, none of ours
        said = str(error).splitlines()[0]
        raise InputError(f"The dataset {shown} could not be read: {said.rstrip('.')}.") from error


def validation_rows(dataset: str, data: Path | None, validation: Path | None, test: list[str]) -> tuple[list[str], int]:
    """Return rows to choose rates on, and how many rows at the end of `test` these are (0: they are another text).

    validation: the file that was chosen. Of a file alone, the one beside it that is named ``valid`` where it is named
    ``test`` is taken, or else its own last rows, which are then not scored.
    """
    if validation is not None:
        return lines_of(validation), 0
    path = Path(dataset)
    if not path.is_file():
        return rows_of(dataset, "validation", data), 0
    for word in ("validation", "valid", "dev"):
        other = path.with_name(path.name.replace("test", word))
        if other != path and other.is_file():
            return lines_of(other), 0
    count = len(test) // HELD_BACK
    if not count:
        raise InputError(f"{dataset} has too few lines to choose rates on some of them; pass a file to --validation.")
    return test[-count:], count


def token_ids(tokenizer: Any, rows: Sequence[str]) -> Tensor:
    """Return the tokens ``[n]`` of rows that are tokenised one by one, without empty ones."""
    texts = [row for row in rows if row.strip()]
    if not texts:
        raise InputError("The text has no rows; pass one that is not empty.")
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return torch.tensor([token for row in ids for token in row], dtype=torch.long)
