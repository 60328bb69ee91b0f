"""The checks around transformers' own loading: what is read before it, and compared after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from tintc.ir.core import Program
from tintc.lowering.emission.emit import check_complete
from tintc.runtime.artefact.beside import DESCRIPTION_FILE, HUB_ARGUMENTS, text_beside
from tintc.runtime.artefact.checks import check_config, check_tensors, of_program, program_of
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.folder import files_of, is_edited, read_auxiliary
from tintc.runtime.artefact.structure_file import structure_digest
from tintc.runtime.model.devices import one_device
from tintc.runtime.model.finite import check_weights
from tintc.runtime.model.precision import warn_if_short
from tintc.runtime.model.saving import SavedModel


@dataclass(frozen=True)
class Source:
    """A simulator to be loaded: a folder or hub id, or a configuration and tensors without one.

    path: None without a folder; hub: arguments that say which files of it; config: complete, and its program as text;
    tensors: the state dict without a folder.
    """

    path: Any
    hub: dict[str, Any]
    config: TintConfig
    program: Program
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, path: Any, kwargs: dict[str, Any]) -> Self:
        """Return what the arguments of `from_pretrained` mean, without those that are the configuration's.

        Raises `ArtefactError` if the folder is no simulator or its configuration and program do not fit, and
        `OptionError` for devices that cannot be had.
        """
        kwargs["device_map"] = one_device(kwargs.get("device_map"))
        config = kwargs.pop("config", None)
        tensors = kwargs.get("state_dict") or {}
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        text, program = program_of(path, config, tensors, hub)
        check_complete(program)
        config = config or TintConfig.from_pretrained(path, **hub)
        for name in kwargs.keys() & config.to_dict().keys() - {"dtype", "torch_dtype"}:
            setattr(config, name, kwargs.pop(name))
        check_config(path, config.to_dict(), program)
        config.complete(of_program(program))
        config.program = text
        if path is not None:
            config.auxiliary = read_auxiliary(path, **hub)
            config.described = text_beside(path, DESCRIPTION_FILE, **hub)
        return cls(path, hub, config, program, tensors)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that transformers needs besides the user's."""
        return {
            "config": self.config,
            "program": self.program,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }

    def finish(self, sim: SavedModel, info: Mapping[str, Any]) -> None:
        """Check a simulator that was just loaded, by transformers' report, and note whose tensors it has.

        Raises `ArtefactError` for tensors that are missing, superfluous, misshapen or not finite.
        """
        assert self.config.program is not None
        edited = is_edited(self.config.program, self.config.digests)
        check_tensors(self.path or "The state dict", info, edited)
        sim.zero_absent_terms()
        if self.path is not None:
            sim.read_tokenizer_from(self.path, self.hub)
            sim.check_against(files_of(self.path, **self.hub))
            check_weights(self.path, dict(sim.named_parameters()))
        elif structure_digest(self.tensors.items()) == self.config.digests.get("structure"):
            sim.trust()
        warn_if_short(sim.dtype)
