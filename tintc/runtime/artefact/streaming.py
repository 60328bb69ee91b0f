"""`write_streamed`: an artefact written tensor by tensor, for simulators that memory would not hold.

The folder is the one that building the simulator and saving it would give.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.folder_writer import check_space, write_texts, writing
from tintc.runtime.artefact.safetensors_writer import LazyTensor, write_files
from tintc.runtime.artefact.structure_file import stored_structure, structure_digest

BESIDE = 1 << 26
"""Room for everything but the tensors (the tokenizer most of all), in bytes."""


def write_streamed(
    out: str | os.PathLike[str],
    config: TintConfig,
    tensors: Mapping[str, LazyTensor],
    tokenizer: Any | None,
    max_shard_size: int,
    force: bool,
    after_each: Callable[[], None],
) -> Path:
    """Write the artefact of a configuration that holds its program; return the absolute path.

    max_shard_size: most bytes of a file of several tensors; after_each: called whenever a tensor has been written.
    Raises `ArtefactError` as `write_artefact` does, and, before anything is written, if the disk has no room for it.
    """
    assert config.program is not None, "the compiler's configuration holds the program"
    with writing(out, force) as folder:
        check_space(folder, sum(planned.nbytes for planned in tensors.values()) + BESIDE)
        hashed = write_files(folder, tensors, max_shard_size, after_each)
        config.digests = config.digests | {"structure": structure_digest(stored_structure(folder).items())}
        config.save_pretrained(folder)
        GenerationConfig.from_model_config(config).save_pretrained(folder)
        write_texts(folder, config, config.program, tokenizer, hashed=hashed)
    return Path(out).resolve()
