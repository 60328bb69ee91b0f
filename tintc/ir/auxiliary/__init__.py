"""The auxiliary dialect: a decoder as linear, norm, attention and activation ops on token vectors."""

from tintc.ir.auxiliary.attention import Attention
from tintc.ir.auxiliary.base import AuxOp, Context
from tintc.ir.auxiliary.columns import Concat, Select
from tintc.ir.auxiliary.elementwise import Activation, Add, Gate, Multiply, Scale
from tintc.ir.auxiliary.experts import Combine, Experts, Route, Spread
from tintc.ir.auxiliary.linear import Linear, Logits
from tintc.ir.auxiliary.mixers import Convolution, Pointwise, Recurrence
from tintc.ir.auxiliary.norm import Norm
from tintc.ir.auxiliary.tables import Constant, Embedding, PositionEmbedding

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "AuxOp",
    "Combine",
    "Concat",
    "Constant",
    "Context",
    "Convolution",
    "Embedding",
    "Experts",
    "Gate",
    "Linear",
    "Logits",
    "Multiply",
    "Norm",
    "Pointwise",
    "PositionEmbedding",
    "Recurrence",
    "Route",
    "Scale",
    "Select",
    "Spread",
]
