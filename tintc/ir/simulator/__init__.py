"""The simulator dialect: the construction's modules. One file per op owns everything about it."""

from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.weights import StoredWeights
from tintc.ir.simulator.ops.activation_backward import ActivationBackward
from tintc.ir.simulator.ops.activation_forward import ActivationForward
from tintc.ir.simulator.ops.add import Add
from tintc.ir.simulator.ops.attention_backward import AttentionBackward
from tintc.ir.simulator.ops.attention_forward import AttentionForward
from tintc.ir.simulator.ops.attention_full_backward import AttentionFullBackward
from tintc.ir.simulator.ops.constant import Constant
from tintc.ir.simulator.ops.embedding import Embedding
from tintc.ir.simulator.ops.gate_backward import GateBackward
from tintc.ir.simulator.ops.gate_forward import GateForward
from tintc.ir.simulator.ops.linear_backward import LinearBackward
from tintc.ir.simulator.ops.linear_descent import LinearDescent
from tintc.ir.simulator.ops.linear_forward import LinearForward
from tintc.ir.simulator.ops.logits import Logits
from tintc.ir.simulator.ops.loss_gradient import LossGradient
from tintc.ir.simulator.ops.mixers.convolution import ConvolutionBackward, ConvolutionForward
from tintc.ir.simulator.ops.mixers.pointwise import Pointwise
from tintc.ir.simulator.ops.mixers.recurrence import RecurrenceBackward, RecurrenceForward
from tintc.ir.simulator.ops.mixtures.combine import Combine, Spread
from tintc.ir.simulator.ops.mixtures.experts_backward import ExpertsBackward
from tintc.ir.simulator.ops.mixtures.experts_descent import ExpertsDescent
from tintc.ir.simulator.ops.mixtures.experts_forward import ExpertsForward
from tintc.ir.simulator.ops.mixtures.route import Route
from tintc.ir.simulator.ops.mixtures.route_backward import RouteBackward, WeightsBackward
from tintc.ir.simulator.ops.norm_backward import NormBackward
from tintc.ir.simulator.ops.norm_descent import NormDescent
from tintc.ir.simulator.ops.norm_forward import NormForward
from tintc.ir.simulator.ops.optimisers.inverse_norm import InverseNorm
from tintc.ir.simulator.ops.optimisers.kept_weights import KeptWeights
from tintc.ir.simulator.ops.optimisers.momentum import Momentum
from tintc.ir.simulator.ops.optimisers.step import Step
from tintc.ir.simulator.ops.optimisers.zeros import Zeros
from tintc.ir.simulator.ops.position_embedding import PositionEmbedding
from tintc.ir.simulator.ops.repeat import Repeat
from tintc.ir.simulator.ops.scale import Scale
from tintc.ir.simulator.ops.select import Select, SelectBackward

__all__ = [
    "ActivationBackward",
    "ActivationForward",
    "Add",
    "AttentionBackward",
    "AttentionForward",
    "AttentionFullBackward",
    "Combine",
    "Constant",
    "ConvolutionBackward",
    "ConvolutionForward",
    "Embedding",
    "ExpertsBackward",
    "ExpertsDescent",
    "ExpertsForward",
    "GateBackward",
    "GateForward",
    "InverseNorm",
    "KeptWeights",
    "LinearBackward",
    "LinearDescent",
    "LinearForward",
    "Logits",
    "LossGradient",
    "Momentum",
    "NormBackward",
    "NormDescent",
    "NormForward",
    "Pointwise",
    "PositionEmbedding",
    "RecurrenceBackward",
    "RecurrenceForward",
    "Repeat",
    "Route",
    "RouteBackward",
    "Scale",
    "Select",
    "SelectBackward",
    "SimOp",
    "Spread",
    "Step",
    "StoredWeights",
    "WeightsBackward",
    "Zeros",
]
