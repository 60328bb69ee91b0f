"""Saving a simulator: the folder that `save_pretrained` leaves, the tokenizer in it, and sending it to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase

from tintc.bounded import check_path
from tintc.errors import ArtefactError, OptionError
from tintc.ir.text import print_program
from tintc.runtime.artefact.folder_writer import check_space, explained, write_texts
from tintc.runtime.artefact.names import AUXILIARY_FILE, DESCRIPTION_FILE, DIGESTS_FILE
from tintc.runtime.artefact.snapshot import Stamp
from tintc.runtime.artefact.staging import merged, staged
from tintc.runtime.artefact.tokenizer import read_tokenizer
from tintc.runtime.execution.run import refuse_float16
from tintc.runtime.model.training import TrainableModel

WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")


class SavedModel(TrainableModel):
    """The part of `TintForCausalLM` that writes folders."""

    _tokenizer: Any = None
    _tokenizer_source: tuple[Any, dict[str, Any], Stamp] | None = None

    def read_tokenizer_from(self, path: Any, hub: dict[str, Any], stamp: Stamp) -> None:
        """Have the tokenizer read from a folder or hub id when it is first asked for. stamp: of its files now."""
        self._tokenizer_source = (path, hub, stamp)

    @property
    def tokenizer(self) -> Any:
        """Return the auxiliary's tokenizer, read when it is first asked for; None if the artefact has none."""
        if self._tokenizer is None and self._tokenizer_source is not None:
            path, hub, stamp = self._tokenizer_source
            self._tokenizer = read_tokenizer(path, stamp, **hub)
            self._tokenizer_source = None
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise OptionError(
                f"The tokenizer is a {type(tokenizer).__name__}; pass one of transformers', such as "
                "AutoTokenizer.from_pretrained(folder), or None."
            )
        self._tokenizer = tokenizer
        self._tokenizer_source = None

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write everything the simulator needs: configuration, tensors, program, card and, if known, the tokenizer.

        Arguments are those of `transformers`. Weight files that were in the folder before are replaced, all of them, at
        the end and together with the rest; other files stay. Raises `ArtefactError`, and changes nothing, if the path
        is a file or the disk will not take it.
        """
        refuse_float16(self.dtype)
        check_path(save_directory, ArtefactError)
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ArtefactError(f"{folder} is a file; choose another output folder.")
        hub: dict[str, Any] = {"repo_id": folder.name, "token": kwargs.get("token")}
        hub |= {name: kwargs.pop(name) for name in COMMIT if push_to_hub and name in kwargs}
        if not is_main_process:
            super().save_pretrained(folder, is_main_process, *args, **kwargs)
            return
        _ = self.tokenizer  # read now: it may lie in the folder that is written to
        with explained(folder), _place(folder, kwargs.get("variant")) as place:
            self.write_into(place, *args, **kwargs)
        if push_to_hub:
            upload(folder, **hub)

    def write_into(self, place: Path, *args: Any, **kwargs: Any) -> None:
        """Write everything the simulator needs into a folder that is not in its place yet; arguments are those of
        `save_pretrained`. Raises `ArtefactError` if the disk has no room for it."""
        refuse_float16(self.dtype)
        own = self.own_digest()
        if own is not None:  # tensors that were cast are still the compiler's own
            self.config.digests = self.config.digests | {"structure": own}
        check_space(place, sum(tensor.nbytes for tensor in self.state_dict().values()))
        super().save_pretrained(place, True, *args, **kwargs)
        write_texts(place, self.config, print_program(self.program), self.tokenizer, edited=own is None)

    def push_to_hub(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, repo_id: str, *, max_shard_size: int | str = "50GB", token: bool | str | None = None, **commit: Any
    ) -> str:
        """Send the whole folder to the hub, model card and all; return where it is then.

        Arguments are those of `transformers`, but for tags, which stand in the card.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return upload(Path(folder), repo_id, token=token, **commit)


COMMIT = ("repo_id", "private", "revision", "create_pr", "commit_message", "commit_description")
"""Arguments of `upload` that `save_pretrained` takes too."""


def upload(
    folder: Path, repo_id: str, private: bool | None = None, token: bool | str | None = None, **commit: Any
) -> str:
    """Send a folder to a repository of the hub, new if need be; return the address of the commit."""
    hub = HfApi(token=token)
    name = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return str(hub.upload_folder(folder_path=folder, repo_id=name, **commit))


@contextmanager
def _place(folder: Path, variant: str | None) -> Iterator[Path]:
    """Give a place to write into, whose files `folder` will hold at the end.

    Weight files that were there before are removed: of ``model.safetensors`` and shards, transformers would load the
    former, whichever is older.
    """
    if folder.exists():
        replaced = [AUXILIARY_FILE, DESCRIPTION_FILE, DIGESTS_FILE]
        if variant is None:
            replaced.extend(WEIGHTS)
        with merged(folder, replaced) as place:
            yield place
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with staged(folder) as place:
            yield place
