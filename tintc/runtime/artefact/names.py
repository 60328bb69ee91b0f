"""The files of an artefact: their names, and the most bytes of each that are read."""

from __future__ import annotations

from fnmatch import fnmatch

from tintc.bounded import MOST_CONFIG, MOST_TOKENIZER

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PROGRAM_FILE = "program.tint"
AUXILIARY_FILE = "auxiliary.tint"
DESCRIPTION_FILE = "auxiliary.json"
DIGESTS_FILE = "digests.json"
CARD_FILE = "README.md"
ROLES_FILE = "roles.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATES = "additional_chat_templates"
"""The folder of a tokenizer's further chat templates, the only one in an artefact."""

MOST_PROGRAM = 1 << 25
"""Bytes of the longest program: a hundred layers and thirty steps."""
MOST_INDEX = 1 << 26
MOST_SHARDS = 10_000

TEXTS = {
    CONFIG_FILE: MOST_CONFIG,
    GENERATION_FILE: MOST_CONFIG,
    PROGRAM_FILE: MOST_PROGRAM,
    AUXILIARY_FILE: MOST_PROGRAM,
    DESCRIPTION_FILE: MOST_CONFIG,
    DIGESTS_FILE: MOST_CONFIG,
    INDEX_FILE: MOST_INDEX,
}
"""Files that are read whole, with the most bytes of each."""

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab*",
    "*.model",
    "merges.txt",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    f"{TEMPLATES}/*.jinja",
)


def is_tokenizers(name: str) -> bool:
    """Return True for the name of a file that a tokenizer may be read from."""
    return any(fnmatch(name, pattern) for pattern in TOKENIZER_PATTERNS)


def most_bytes(name: str) -> int:
    """Return the most bytes that are read of a file that is not one of weights."""
    return TEXTS.get(name, MOST_TOKENIZER)
