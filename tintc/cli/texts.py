"""The text that a command is given: where it is read from, and its tokens."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tintc.errors import ArtefactError, InputError, OptionError
from tintc.frontend.source.provenance import TOKENIZER_PROBLEM
from tintc.runtime.artefact.folder import read_config

STDIN = Path("-")
"""The file that stands for standard input."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, as a shell passes bytes that are no UTF-8."""


def read_text(text: str | None, file: Path | None) -> str:
    """Return the text of the one option that is there; of standard input if the file is ``-``."""
    if (text is None) == (file is None):
        raise OptionError("Pass the text either with --text or with --file, and not with both.")
    if text is not None:
        content = text
    else:
        assert file is not None
        name = "standard input" if file == STDIN else file
        try:
            content = _bytes_of(file, name).decode("utf-8")
        except OSError as error:
            raise InputError(f"Cannot read {name}: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not UTF-8 text (byte {error.start}); convert it first.") from error
    if not content:
        raise InputError("The text is empty; pass at least a few words.")
    if SURROGATE.search(content):
        raise InputError("The text is not valid Unicode; pass UTF-8.")
    return content


MOST_TEXT = 1 << 26
"""Bytes of the longest text that is read: a tokenizer takes two hundred times as many of memory."""


def _bytes_of(file: Path, name: object) -> bytes:
    """Return the bytes of a file, which may be a pipe; raise `InputError` for more than a tokenizer can take."""
    if file == STDIN:
        data = sys.stdin.buffer.read(MOST_TEXT + 1)
    else:
        with file.open("rb") as opened:
            data = opened.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise InputError(
            f"{name} has more than {MOST_TEXT:,} bytes, which is the most that is read; pass a part of it."
        )
    return data


LONGEST_TOKEN = 256
"""Characters of a token that hardly any is longer than."""


def tokenise(path: str, tokenizer: Any, text: str, special: bool = True, most: int | None = None) -> Tensor:
    """Return token ids ``[n]`` as the tokenizer gives them: those of Llama and Gemma begin a text with a token of its
    own.

    special: False leaves such tokens out. most: tokens that are looked at; of a text that is much longer only the
    beginning is read, if it has more than so many.
    """
    check_tokenizer(path, tokenizer)
    if most is not None and len(text) > (most + 1) * LONGEST_TOKEN:
        beginning = tokenise(path, tokenizer, text[: (most + 1) * LONGEST_TOKEN], special)
        if len(beginning) > most + 1:
            return beginning
    return torch.tensor(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=torch.long)


def check_tokenizer(path: str, tokenizer: Any) -> None:
    """Raise `ArtefactError`, which says why, if there is none."""
    if tokenizer is None:
        problem = read_config(path).get("provenance", {}).get(TOKENIZER_PROBLEM)
        why = f"could not be read ({problem.rstrip('.')})" if problem else "had none"
        raise ArtefactError(
            f"{path} has no tokenizer, because {'that of ' if problem else ''}the model it was compiled from {why}; "
            "call the simulator from Python with token ids, or compile a folder that has a tokenizer."
        )
