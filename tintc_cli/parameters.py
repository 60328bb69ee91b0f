"""Parameters of a command that stand for many options: those of a compilation, and groups that commands share.

Typer makes an option of every parameter of a function. A command that is decorated with `spread` takes a group, a
dataclass, as one parameter, and the command line has an option for every field of it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, wraps
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_type_hints

import typer

Chosen = dict[str, Any]
"""Options of a compilation, by name; `spread` puts the command line's own in their place."""
Command = Callable[..., None]


@dataclass(frozen=True)
class Spread:
    """The parameters of the command line that stand for one parameter of a function, and what makes its value."""

    parameters: list[Parameter]
    value: Callable[[dict[str, Any]], Any]


def spread(wanted: Callable[[Any], bool] | None = None) -> Callable[[Command], Command]:
    """Return a decorator that gives a command an option for every field of the groups that it takes.

    wanted: which options of a compilation the command takes as one dictionary, `options`, by what `tintc.options` says
    about them.
    """

    def decorate(command: Command) -> Command:
        spreads: dict[str, Spread] = {}
        parameters: list[Parameter] = []
        for one in signature(command, eval_str=True).parameters.values():
            if one.name == "options" and wanted is not None:
                spreads[one.name] = of_options(wanted)
            elif hasattr(one.annotation, "__dataclass_fields__"):
                spreads[one.name] = of_group(one.annotation)
            else:
                parameters.append(one)
                continue
            parameters += spreads[one.name].parameters

        @wraps(command)
        def called(**values: Any) -> None:
            for name, one in spreads.items():
                part = {parameter.name: values.pop(parameter.name) for parameter in one.parameters}
                values[name] = one.value(part)
            command(**values)

        keywords = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters]
        called.__signature__ = signature(command).replace(parameters=keywords)  # pyright: ignore[reportAttributeAccessIssue]
        called.__annotations__ = {one.name: one.annotation for one in keywords}
        return called

    return decorate


def of_group(group: type[Any]) -> Spread:
    """Return the parameters for a dataclass: one for each field, which says how in its annotation."""
    kinds = get_type_hints(group, include_extras=True)
    parameters = [
        Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=kinds[one.name])
        for one in fields(group)
    ]
    return Spread(parameters, lambda values: group(**values))


def options_module() -> Any:
    """Return `tintc.options` without importing the package, which would take seconds."""
    for name in ("option_facts", "option_conflicts", "options"):
        load_alone(f"tintc.{name}")
    return sys.modules["tintc.options"]


def load_alone(name: str) -> None:
    """Import a module of the package whose own imports are loaded already, without the package around it."""
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, Path(__file__).resolve().parents[1] / f"{name.replace('.', '/')}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def of_options(wanted: Callable[[Any], bool]) -> Spread:
    """Return the parameters for those options of a compilation that are wanted."""
    module = options_module()
    names = [name for name, about in module.ABOUT.items() if wanted(about)]
    parameters = [parameter for name in names for parameter in option_parameters(module, name)]
    return Spread(parameters, partial(without_short_forms, names))


def without_short_forms(names: list[str], values: dict[str, Any]) -> Chosen:
    """Return options by name; one that was given by its short form, or by a former name, has that value."""
    options: Chosen = {}
    for name in names:
        options[name] = values[name]
        for form in (short_form(name), former_name(name)):
            given = values.get(form)
            if given is None:
                continue
            options[name] = given
            if form == former_name(name):
                warn_of_former(name)
    return options


def short_form(name: str) -> str:
    """Return the name of the parameter that takes an option by its short form."""
    return f"{name}_in_short"


def former_name(name: str) -> str:
    """Return the name of the parameter that takes an option by the name that it had."""
    return f"{name}_formerly"


def warn_of_former(name: str) -> None:
    """Say how an option is called now."""
    former = options_module().ABOUT[name].former
    spellings = (one.replace("_", "-") for one in (former, name))
    logging.getLogger("tintc").warning("The option --%s is called --%s now.", *spellings)


def option_parameters(module: Any, name: str) -> list[Parameter]:
    """Return the parameters of a command for one option of a compilation: one, and hidden ones for a short form and
    for a former name.

    All in one would make the column of names so wide that help at 80 columns cuts it.
    """
    about = module.ABOUT[name]
    kind = get_type_hints(module.Options)[name]
    default = getattr(module.Options, name)
    metavar = None
    if about.choices:
        kind = Literal[about.choices]
        metavar = "<name>"
    if default is None:
        kind = Optional[kind]  # noqa: UP045, which wants an operator that a Literal made at run time does not have
    text = about.help
    if about.short:
        text += f" Short form: --{about.short}"
    if about.former:
        text += f" Formerly --{about.former.replace('_', '-')}"
    shown = typer.Option(f"--{name.replace('_', '-')}", help=text, metavar=metavar)
    parameters = [Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])]
    for form, spelling in ((short_form(name), about.short), (former_name(name), about.former)):
        if spelling:
            hidden = typer.Option(f"--{spelling.replace('_', '-')}", hidden=True)
            annotation = Annotated[kind | None, hidden]
            parameters.append(Parameter(form, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters
