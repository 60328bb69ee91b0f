"""Saving a simulator: the folder that `save_pretrained` leaves, the tokenizer in it, and sending it to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi

from tintc.ir.text import print_program
from tintc.runtime.artefact import read_tokenizer, write_texts
from tintc.runtime.training import TrainableModel

WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")


class SavedModel(TrainableModel):
    """The part of `TintForCausalLM` that writes folders."""

    _tokenizer: Any = None
    _tokenizer_source: tuple[Any, dict[str, Any]] | None = None

    @property
    def tokenizer(self) -> Any:
        """The auxiliary's tokenizer, read when it is first asked for; None if the artefact has none."""
        if self._tokenizer is None and self._tokenizer_source is not None:
            path, hub = self._tokenizer_source
            self._tokenizer, self._tokenizer_source = read_tokenizer(path, **hub), None
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer, self._tokenizer_source = tokenizer, None

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Everything the simulator needs: configuration, tensors, program, model card and, if known, the tokenizer.

        Arguments are those of `transformers`. Weight files that were in the folder before are replaced, all of them.
        """
        held, own, folder = self._held, self.own_digest(), Path(save_directory)
        hub: dict[str, Any] = {"repo_id": folder.name, "token": kwargs.get("token")}
        hub |= {name: kwargs.pop(name) for name in COMMIT if push_to_hub and name in kwargs}
        tokenizer = self.tokenizer  # read now: it may lie in the folder that is written to
        if own is not None:  # tensors that were cast are still the compiler's own
            self.config.digests = self.config.digests | {"structure": own}
        with _replaced(folder, is_main_process and kwargs.get("variant") is None):
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if not held:
            self.release()
        if is_main_process:
            for file in folder.glob("*.safetensors"):
                file.chmod((folder / "config.json").stat().st_mode)  # written readable by its owner alone
            write_texts(folder, self.config, print_program(self.program), tokenizer, edited=own is None)
            if push_to_hub:
                upload(folder, **hub)

    def push_to_hub(
        self, repo_id: str, *, max_shard_size: int | str = "50GB", token: bool | str | None = None, **commit: Any
    ) -> str:
        """Send the whole folder to the hub, model card and all; where it is then. Arguments are those of
        `transformers`, but for tags, which stand in the card."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return upload(Path(folder), repo_id, token=token, **commit)


COMMIT = ("repo_id", "private", "revision", "create_pr", "commit_message", "commit_description")
"""Arguments of `upload` that `save_pretrained` takes too."""


def upload(
    folder: Path, repo_id: str, private: bool | None = None, token: bool | str | None = None, **commit: Any
) -> str:
    """Send a folder to a repository of the hub, made if need be; the address of the commit."""
    hub = HfApi(token=token)
    name = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return str(hub.upload_folder(folder_path=folder, repo_id=name, **commit))


@contextmanager
def _replaced(folder: Path, wanted: bool) -> Iterator[None]:
    """Removes weight files that were there before and were not written anew: of ``model.safetensors`` and shards,
    transformers would load the former, whichever is older."""
    before = _stamps(folder)
    yield
    for file, stamp in _stamps(folder).items():
        if wanted and before.get(file) == stamp:
            file.unlink()


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    found = {file: file.stat() for pattern in WEIGHTS for file in folder.glob(pattern)}
    return {file: (stat.st_ino, stat.st_mtime_ns) for file, stat in found.items()}
