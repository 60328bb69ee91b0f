"""Rules that turn auxiliary ops into simulator modules, forward and backward; its files are found by being here."""

from importlib import import_module
from pkgutil import iter_modules

from tintc.lowering.rules.base import Rule, rule_of
from tintc.lowering.rules.sweep import Sweep, WeightGroup

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Rule", "Sweep", "WeightGroup", "rule_of"]
