"""The checks around transformers' own loading: what is read before it, and compared after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor
from transformers import GenerationConfig

from tintc.errors import ArtefactError
from tintc.ir.core import Program
from tintc.lowering.emission.emit import specs
from tintc.runtime.artefact.beside import HUB_ARGUMENTS
from tintc.runtime.artefact.checks import check_config, of_program, program_alone
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.digests import changed_files, refuse_changed, say_edited
from tintc.runtime.artefact.folder import config_in, is_edited, opened, program_in
from tintc.runtime.artefact.names import AUXILIARY_FILE, CONFIG_FILE, DESCRIPTION_FILE, GENERATION_FILE
from tintc.runtime.artefact.schema import generation_config
from tintc.runtime.artefact.snapshot import Stamp, damaged
from tintc.runtime.artefact.tensor_files import TensorFiles, check_shapes
from tintc.runtime.model.devices import check_devices, one_device
from tintc.runtime.model.finite import check_weights
from tintc.runtime.model.precision import warn_if_short
from tintc.runtime.model.saving import SavedModel


@dataclass(frozen=True)
class Source:
    """A simulator to be loaded: read from a folder or hub id, or given as a configuration and tensors without one.

    path: None without a folder; hub: arguments that say which files of it; config: complete, and its program as text;
    tensors: the state dict, of a folder in its mapped files; generation: its settings for generating; changed: names of
    files that are not as they were written; stamp: of the files that were read.
    """

    path: Any
    hub: dict[str, Any]
    config: TintConfig
    program: Program
    tensors: Mapping[str, Tensor]
    generation: GenerationConfig | None = None
    changed: tuple[str, ...] = ()
    stamp: Stamp = field(default_factory=dict)

    @classmethod
    def of(cls, path: Any, kwargs: dict[str, Any]) -> Self:
        """Return what the arguments of `from_pretrained` mean, without those that are the configuration's.

        Raises `ArtefactError` if the folder is no simulator or its files do not fit each other, and `OptionError` for
        devices that cannot be had. No number of a tensor has been read then.
        """
        check_devices(kwargs.get("device_map"))
        kwargs["device_map"] = one_device(kwargs.get("device_map"))
        config = kwargs.pop("config", None)
        tensors = kwargs.pop("state_dict", None) or {}
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        full = bool(kwargs.pop("check_files", False))
        if kwargs.pop("variant", None) is not None:
            raise ArtefactError(
                f"{path} has one set of weights. Leave variant out; dtype says what to convert them to."
            )
        for name in WITHOUT_EFFECT:
            kwargs.pop(name, None)
        if path is None:
            text, program = program_alone(config, tensors)
            config = _fitted(path, config, kwargs, text, program)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            check_shapes("The state dict", shapes, specs(program), is_edited(text, config.digests))
            return cls(path, hub, config, program, tensors)
        with opened(path, weights=True, **hub) as snapshot:
            stored = config_in(path, snapshot)
            text, program = program_in(path, snapshot)
            config = _fitted(path, config or _config(path, stored), kwargs, text, program)
            config.auxiliary = snapshot.text(AUXILIARY_FILE)
            config.described = snapshot.text(DESCRIPTION_FILE)
            config.name_or_path = str(path)
            edited = is_edited(text, config.digests)
            files = TensorFiles(snapshot)
            check_shapes(path, files.shapes(), specs(program), edited)
            generation = generation_config(snapshot.folder / GENERATION_FILE, snapshot.json(GENERATION_FILE))
            if full:
                refuse_changed(snapshot)
            changed = tuple(changed_files(snapshot))
            return cls(path, hub, config, program, files.tensors(), generation, changed, snapshot.stamp())

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that transformers needs besides the user's."""
        arguments: dict[str, Any] = {"state_dict": dict(self.tensors)}
        if self.generation is not None:
            arguments["generation_config"] = self.generation
        return arguments | {
            "config": self.config,
            "program": self.program,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }

    def finish(self, sim: SavedModel) -> None:
        """Check the numbers of a simulator that was just loaded, note whose tensors it has, and say, once, if its files
        were edited. Raises `ArtefactError` for tensors that are not finite."""
        sim.zero_absent_terms()
        sim.check_against(self.tensors)
        if self.path is not None:
            sim.read_tokenizer_from(self.path, self.hub, self.stamp)
            sim.name_or_path = str(self.path)
            check_weights(self.path, dict(sim.named_parameters()))
            say_edited(self.path, self.changed, is_edited(self.config.program or "", self.config.digests))
        warn_if_short(sim.dtype)


WITHOUT_EFFECT = ("use_safetensors", "weights_only", "adapter_kwargs", "adapter_name", "gguf_file", "trust_remote_code")
"""Arguments of transformers that say how files are found and read, which is decided here."""


def _config(path: Any, stored: dict[str, Any]) -> TintConfig:
    """Return a configuration of entries that were checked."""
    try:
        return TintConfig.from_dict(dict(stored))
    except ArtefactError:
        raise
    except Exception as error:  # of transformers, which stumbles over some combinations
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise damaged(f"{path}/{CONFIG_FILE}", reason[:200].rstrip(".")) from error


def _fitted(path: Any, config: TintConfig, kwargs: dict[str, Any], text: str, program: Program) -> TintConfig:
    """Return a configuration with what the arguments say of it, checked against the program, and complete."""
    for name in kwargs.keys() & config.to_dict().keys() - {"dtype", "torch_dtype"}:
        setattr(config, name, kwargs.pop(name))
    check_config(path, config.to_dict(), program)
    config.complete(of_program(program))
    config.program = text
    return config
