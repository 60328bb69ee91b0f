"""Options as arguments of a function, by keyword or by position: those of `tintc.compile`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from functools import wraps
from typing import Any, TypeVar

from tintc.options import ABOUT, FORMER, Options, renamed

T = TypeVar("T")


def takes_options(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function of (subject, options, ...) that also takes options one by one, by keyword or by position.

    None stands for an option's default. Its signature and docstring name every option; ``{options}`` in the docstring
    is where they stand.
    """

    own = list(inspect.signature(function).parameters.values())
    options = [
        inspect.Parameter(one.name, own[0].kind, default=one.default, annotation=one.type) for one in fields(Options)
    ]
    signature = inspect.Signature([own[0], *options, *own[2:]])

    def refuse_unknown(keywords: dict[str, Any]) -> None:
        from tintc import keywords as of_functions

        shorts = {about.short.replace("-", "_"): name for name, about in ABOUT.items() if about.short}
        of_functions.refuse_unknown(function.__name__, keywords, signature.parameters, shorts | FORMER)

    @wraps(function)
    def called(*values: Any, **keywords: Any) -> T:
        chosen: Options | None = None
        if len(values) > 1 and isinstance(values[1], Options):
            chosen = values[1]
            values = (values[0], *values[2:])
        if "options" in keywords:
            chosen = keywords.pop("options")
        for former in keywords.keys() & FORMER.keys():
            warnings.warn(f"The option {former} is called {FORMER[former]} now.", DeprecationWarning, stacklevel=2)
        keywords = renamed(keywords)
        refuse_unknown(keywords)
        arguments = signature.bind(*values, **keywords).arguments
        settings = {name: arguments.pop(name) for name in ABOUT if name in arguments}
        settings = {name: value for name, value in settings.items() if value is not None}
        # Some defaults depend on other options, so that they must be told together.
        chosen = Options(**settings) if chosen is None else replace(chosen, **settings)
        return function(arguments.pop(own[0].name), chosen, **arguments)

    called.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    lines = [f"{name}: {about.help}" for name, about in ABOUT.items()]
    called.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("{options}", "\n".join(lines))
    return called
