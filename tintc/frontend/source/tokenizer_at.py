"""The tokenizer beside a model's weights."""

from __future__ import annotations

from glob import escape, glob
from typing import Any

from transformers import AutoTokenizer

from tintc.frontend.source.failures import first_sentence
from tintc.frontend.source.places import Place

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt", "*.tiktoken")


def tokenizer_at(place: Place) -> tuple[Any | None, str]:
    """Return the tokenizer beside the weights, and why it cannot be read; None if there is none or it cannot.

    An adapter's own comes before its base's. transformers makes an empty tokenizer for some model types when a folder
    has none; that would only mislead.
    """
    options = place.options
    folder = place.folder
    if place.adapter is not None and _has_tokenizer(place.adapter):
        folder = place.adapter
        options = {"local_files_only": True, "trust_remote_code": False}
    elif place.local and not place.gguf_file and not _has_tokenizer(folder):
        return None, ""
    try:
        return AutoTokenizer.from_pretrained(folder, **options), ""
    except Exception as error:  # of transformers, or of a package that it asks for
        return None, first_sentence(error)


def _has_tokenizer(folder: str) -> bool:
    return any(glob(f"{escape(folder)}/{name}") for name in TOKENIZER_FILES)
