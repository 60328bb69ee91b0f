"""The model card that every artefact carries (``README.md`` with the metadata the Hugging Face hub reads)."""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined

from tintc.runtime.config import TintConfig

TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- tint
- tintc
---
# TinT simulator of {{ source }}

A *TinT simulator* (Trainable Transformer in Transformer, arXiv 2307.01189), compiled by tintc. In one forward pass
over a text it runs the auxiliary model **{{ source }}**, computes its loss on the first part of the text,
back-propagates it, takes {{ config.n_steps }} gradient step{{ "" if config.n_steps == 1 else "s" }} on the top {{
config.n_update_layers }} of {{ config.num_hidden_layers }} layers, and predicts the rest with the updated weights.

| option | value |
|---|---|
| semantics | {{ config.semantics }} |
| loss | {{ config.loss }} |
| parameters that descend | {{ config.descend }} |
| learning rate (gradients summed over train tokens) | {{ config.inner_lr }} |
| finite differences | {{ config.fd_scheme }}, step {{ config.fd_step }} |
| structural tensors shared by | {{ config.reuse }} |
| pre-activation of open gates | {{ config.gate_scale }} |
| longest text | {{ config.max_position_embeddings }} tokens |
| linear attention | {{ config.linear_attention }} heads |
| simulator width | {{ config.d_sim }} ({{ config.n_sim_heads }} heads), {{ config.n_prefixes }} prefix embeddings |
| stacking S, shards S' | {{ config.stack }}, {{ config.shards }} |
{% for key, value in config.provenance.items() | sort -%}
| auxiliary: {{ key }} | {{ value }} |
{% endfor %}
```python
import tintc

sim = tintc.load("path/to/this/folder")
out = sim(input_ids)              # trains on the first half of the text
out.logits                        # predictions of the updated auxiliary
sim.generate(input_ids, max_new_tokens=20)  # adapts to the prompt once, and writes on
```

`program.tint` is the simulator's program as text; the weights are those of the auxiliary model and stay under its
licence.
"""


def model_card(config: TintConfig) -> str:
    """The card as Markdown; the same configuration gives the same text."""
    source = config.provenance.get("source") or "an auxiliary model"
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(TEMPLATE).render(config=config, source=source)
