"""The auxiliary dialect: a decoder as linear, norm, attention and activation ops on token vectors."""

from tintc.ir.auxiliary.attention import Attention
from tintc.ir.auxiliary.base import AuxOp, Context
from tintc.ir.auxiliary.elementwise import Activation, Add, Gate, Multiply, Select
from tintc.ir.auxiliary.embedding import Embedding, PositionEmbedding
from tintc.ir.auxiliary.linear import Linear, Logits
from tintc.ir.auxiliary.norm import Norm

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "AuxOp",
    "Context",
    "Embedding",
    "Gate",
    "Linear",
    "Logits",
    "Multiply",
    "Norm",
    "PositionEmbedding",
    "Select",
]
