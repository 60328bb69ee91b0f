"""The simulator dialect: the construction's modules. One file per op owns everything about it."""

from tintc.ir.simulator.activation_backward import ActivationBackward
from tintc.ir.simulator.activation_forward import ActivationForward
from tintc.ir.simulator.add import Add
from tintc.ir.simulator.attention_backward import AttentionBackward
from tintc.ir.simulator.attention_forward import AttentionForward
from tintc.ir.simulator.base import SimOp
from tintc.ir.simulator.constant import Constant
from tintc.ir.simulator.embedding import Embedding
from tintc.ir.simulator.gate_backward import GateBackward
from tintc.ir.simulator.gate_forward import GateForward
from tintc.ir.simulator.linear_backward import LinearBackward
from tintc.ir.simulator.linear_descent import LinearDescent
from tintc.ir.simulator.linear_forward import LinearForward
from tintc.ir.simulator.logits import Logits
from tintc.ir.simulator.loss_gradient import LossGradient
from tintc.ir.simulator.norm_backward import NormBackward
from tintc.ir.simulator.norm_descent import NormDescent
from tintc.ir.simulator.norm_forward import NormForward
from tintc.ir.simulator.position_embedding import PositionEmbedding
from tintc.ir.simulator.repeat import Repeat
from tintc.ir.simulator.scale import Scale
from tintc.ir.simulator.select import Select, SelectBackward
from tintc.ir.simulator.weights import StoredWeights

__all__ = [
    "ActivationBackward",
    "ActivationForward",
    "Add",
    "AttentionBackward",
    "AttentionForward",
    "Constant",
    "Embedding",
    "GateBackward",
    "GateForward",
    "LinearBackward",
    "LinearDescent",
    "LinearForward",
    "Logits",
    "LossGradient",
    "NormBackward",
    "NormDescent",
    "NormForward",
    "PositionEmbedding",
    "Repeat",
    "Scale",
    "Select",
    "SelectBackward",
    "SimOp",
    "StoredWeights",
]
