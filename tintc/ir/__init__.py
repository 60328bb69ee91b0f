"""Programs in two dialects, `auxiliary` and `simulator`, and the mathematics and descriptions that both are made of.

- `core`: ops, values and programs; `text`: programs as text; `attributes`, `names`, `liveness`: what goes with these.
- `functions`, `scores`, `losses`, `recurrence`, `convolution`, `pointwise`: the mathematics.
- `router`, `routed`: mixtures of experts. `routing` is something else: it moves coordinates within an embedding.
- `layout`, `structure`, `block_specs`: how wide a simulator is, and the tensors of its blocks.
- `inputs`: token ids, positions and masks.
"""
