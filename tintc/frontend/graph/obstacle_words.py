"""The words for obstacles: kinds of layers that tintc does not support, as a model's users call them.

Each stands behind "it has", and before ", which tintc does not support".
"""

EXPERTS = "a mixture of experts that transformers' interface for experts does not compute"
LOOPED_EXPERTS = "a mixture of experts that is computed in a loop over the experts that the tokens choose"
SPECIAL_EXPERTS = "a mixture of experts that are not two linear layers with a function between them that tintc knows"
ROUTING = "routing that depends on the tokens by a rule that tintc does not know"
STREAMS = "several residual streams, which every token mixes by weights that it computes"
VECTORS = "more than one vector for every token"
DYNAMIC_MASK = (
    "attention whose mask or bias is computed from what the tokens are (as in sparse attention with an indexer)"
)
TWO_WAY = "attention that is not causal (as an encoder's)"
SCORES = "attention whose scores are not a product of queries and keys with a mask"
BIAS = "attention with a bias that is not a multiple of the distance (ALiBi is one)"
CONVOLUTION = "a convolution over the tokens of a kind that tintc does not know"
STATE_SPACE = "a state-space or linear-attention layer that is not written as a function of queries, keys and values"
PRODUCTS = "products of two values of the tokens elsewhere than in softmax attention (as in linear attention)"
TOKEN_LOOP = "a layer that runs in a loop over the tokens (as recurrent layers do)"
DEPENDENT_SIZES = "a layer whose path or amount of work depends on what the tokens are"
POSITIONS = (
    "a table that is looked up by something computed from what the tokens are (as positions that leave out padding)"
)
TABLE = "a table that is looked up by neither tokens nor positions (as token types are)"
ACTIVATION = "an activation function that tintc does not know"
UNKNOWN = "operations that tintc does not know"
"""The obstacle of a graph that has no other: the operations follow in brackets."""
NO_RULE = "no rule takes this operation"
