"""The importer's rules, in the order in which they are tried: the first that recognises a node decides.

Order matters where two rules recognise one node. `tests/frontend/test_rule_order.py` lists these pairs, and checks that
there are no others.
"""

from tintc.frontend.attention.attention_rule import AttentionRule
from tintc.frontend.rule import Rule
from tintc.frontend.rules.activations import ActivationRule, ClampRule, MixtureRule, SwishRule, UnknownFunctionRule
from tintc.frontend.rules.arithmetic import (
    AddRule,
    ConstantRule,
    MultiplyRule,
    ScaleRule,
    ShiftedProductRule,
    SubtractRule,
)
from tintc.frontend.rules.columns import HeadsRule, SelectRule
from tintc.frontend.rules.embeddings import EmbeddingRule, PositionEmbeddingRule, PositionTableRule
from tintc.frontend.rules.experts import ExpertsRule
from tintc.frontend.rules.head_products import HeadProductRule
from tintc.frontend.rules.linear import LinearRule
from tintc.frontend.rules.mixers import ConvolutionRule, PointwiseRule, RecurrenceRule
from tintc.frontend.rules.multipliers import MultipliersRule
from tintc.frontend.rules.norms import FusedNormRule, NormBiasRule, WrittenNormRule
from tintc.frontend.rules.shared_factors import SharedFactorRule

RULES: tuple[type[Rule], ...] = (
    EmbeddingRule,
    PositionEmbeddingRule,
    PositionTableRule,
    AttentionRule,
    ExpertsRule,
    RecurrenceRule,
    ConvolutionRule,
    PointwiseRule,
    FusedNormRule,
    WrittenNormRule,
    NormBiasRule,
    ActivationRule,
    SwishRule,
    MixtureRule,
    ClampRule,
    HeadProductRule,
    LinearRule,
    HeadsRule,
    SelectRule,
    ScaleRule,
    ConstantRule,
    MultipliersRule,
    AddRule,
    SubtractRule,
    ShiftedProductRule,
    SharedFactorRule,
    MultiplyRule,
    UnknownFunctionRule,
)


def default_rules() -> list[Rule]:
    """Return one rule of each kind, in order."""
    return [rule() for rule in RULES]


__all__ = ["RULES", "Rule", "default_rules"]
