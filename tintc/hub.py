"""Names of models on the hub, which is asked for them once before transformers asks at length."""

from __future__ import annotations

from typing import Any

from huggingface_hub import file_exists, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError
from huggingface_hub.utils import validate_repo_id

MODEL_TYPE = "tint"
"""`model_type` of a simulator's configuration."""


def why_missing(
    name: str,
    revision: str | None = None,
    token: Any = None,
    cache_dir: Any = None,
    subfolder: str = "",
    local_files_only: bool = False,
    **_: Any,
) -> str | None:
    """Return why a model of this name, which is no folder, cannot be loaded: the end of a sentence. None if it may be.

    Keyword arguments are those of `from_pretrained`. Where the hub cannot be reached, transformers tries six times,
    for half a minute; this asks once, and not at all for what is in the cache.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return "no model on the hub can have that name"
    file = f"{subfolder}/config.json".removeprefix("/")
    if isinstance(try_to_load_from_cache(name, file, cache_dir, revision), str):
        return None
    if local_files_only:
        return "none of the hub is in the cache by that name"
    try:
        exists = file_exists(name, file, revision=revision, token=token)
    except GatedRepoError:
        return None  # transformers says what to do
    except Exception as error:  # whatever the connection raises, whose packages change
        return f"the hub cannot be asked for it ({type(error).__name__})"
    if not exists:
        return "the hub has no such model"
    return None
