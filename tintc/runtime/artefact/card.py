"""The model card that every artefact carries (``README.md`` with the metadata the Hugging Face hub reads)."""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined

from tintc.runtime.artefact.config import TintConfig

TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- tint
- tintc
{% if "/" in source -%}
base_model: {{ source }}
{% endif -%}
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
| longest text | {{ config.max_position_embeddings }} tokens |
| linear attention | {{ config.linear_attention }} heads |
| simulator width | {{ config.d_sim }} ({{ config.n_sim_heads }} heads), {{ config.n_prefixes }} prefix embeddings |
| stacking S, shards S' | {{ config.stack }}, {{ config.shards }} |
{% for key, value in config.provenance.items() | sort -%}
| auxiliary: {{ key }} | {{ value }} |
{% endfor %}
{% if edited -%}
Its structural tensors are not those that the compiler emitted: somebody edited or trained them. So it is executed
literally only, module by module.

{% endif -%}
## How to load it

Install the package tintc from its source (`pip install .` in a checkout), and `import tintc` before anything else:
transformers alone does not know the type `tint` and says that it does not recognize the architecture. No remote code is
run.

```python
import tintc
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sim = AutoModelForCausalLM.from_pretrained("path/to/this/folder")  # or tintc.load(...), which tells mistakes sooner
{% if has_tokenizer -%}
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
input_ids = tokenizer("A text to train on, and to predict the rest of", return_tensors="pt").input_ids
{% endif -%}
out = sim(input_ids, return_before=True)  # trains on the first {{ share }} % of the text
out.logits_before, out.logits             # predictions of {{ source }}, and of what it becomes
sim.generate(input_ids, max_new_tokens=20)  # adapts to the prompt once, and writes on
state = sim.adapt(input_ids, train_mask=torch.ones_like(input_ids))  # trains on all of it, and keeps what it learnt
sim.generate(input_ids, state=state, max_new_tokens=20)
```

What is trained on, and how, is said by `train_mask` and `loss_mask` (`[batch, length]`) and `inner_lr`, in a forward
pass, in `adapt` and in `generate` alike. `state.save("out.state")` writes what was learnt into a file, which
`tintc.AdaptedState.load("out.state", sim)` reads, and `state.export` into an ordinary model of the auxiliary's type.
{% if not has_tokenizer %}
{{ source }} came without a tokenizer; `input_ids` are token ids `[batch, length]`.
{% endif %}
From the command line, `tintc run path/to/this/folder --file text.txt` gives the perplexity before and after.

`program.tint` is the simulator's program as text; the weights are those of the auxiliary model and stay under its
licence.
"""


def model_card(config: TintConfig, has_tokenizer: bool = True, edited: bool = False) -> str:
    """The card as Markdown; the same arguments give the same text.

    edited: whether the structural tensors are not the compiler's own.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(TEMPLATE).render(
        config=config,
        source=config.provenance.get("source") or "an auxiliary model",
        share=f"{100 * config.train_fraction:g}",
        has_tokenizer=has_tokenizer,
        edited=edited,
    )
