"""The importer's rules, one small file each. Their order means nothing."""

from tintc.frontend.attention.attention_rule import AttentionRule
from tintc.frontend.rules.activation import ActivationRule
from tintc.frontend.rules.base import Rule
from tintc.frontend.rules.binary import AddRule, MultiplyRule, SubtractRule
from tintc.frontend.rules.clamp import ClampRule
from tintc.frontend.rules.constant import ConstantRule
from tintc.frontend.rules.embedding import EmbeddingRule, PositionEmbeddingRule
from tintc.frontend.rules.heads import HeadsRule
from tintc.frontend.rules.layer_norm import LayerNormRule
from tintc.frontend.rules.linear import LinearRule
from tintc.frontend.rules.mixture import MixtureRule
from tintc.frontend.rules.position_table import PositionTableRule
from tintc.frontend.rules.rms_norm import RMSNormRule
from tintc.frontend.rules.scale import ScaleRule
from tintc.frontend.rules.select import SelectRule


def default_rules() -> list[Rule]:
    return [
        ActivationRule(),
        AddRule(),
        AttentionRule(),
        ClampRule(),
        ConstantRule(),
        EmbeddingRule(),
        HeadsRule(),
        LayerNormRule(),
        LinearRule(),
        MixtureRule(),
        MultiplyRule(),
        PositionEmbeddingRule(),
        PositionTableRule(),
        RMSNormRule(),
        ScaleRule(),
        SelectRule(),
        SubtractRule(),
    ]


__all__ = ["Rule", "default_rules"]
