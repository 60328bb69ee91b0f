"""The auxiliary dialect: a decoder as linear, norm, attention and activation ops on token vectors."""

from tintc.ir.auxiliary.activation import Activation
from tintc.ir.auxiliary.add import Add
from tintc.ir.auxiliary.attention import Attention
from tintc.ir.auxiliary.base import AuxOp, Context
from tintc.ir.auxiliary.concat import Concat
from tintc.ir.auxiliary.constant import Constant
from tintc.ir.auxiliary.embedding import Embedding
from tintc.ir.auxiliary.gate import Gate
from tintc.ir.auxiliary.linear import Linear
from tintc.ir.auxiliary.logits import Logits
from tintc.ir.auxiliary.multiply import Multiply
from tintc.ir.auxiliary.norm import Norm
from tintc.ir.auxiliary.position_embedding import PositionEmbedding
from tintc.ir.auxiliary.scale import Scale
from tintc.ir.auxiliary.select import Select

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "AuxOp",
    "Concat",
    "Constant",
    "Context",
    "Embedding",
    "Gate",
    "Linear",
    "Logits",
    "Multiply",
    "Norm",
    "PositionEmbedding",
    "Scale",
    "Select",
]
