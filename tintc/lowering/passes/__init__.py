"""The passes, one file each, and files that one pass is split into.

`tintc.lowering.pipeline` lists the passes and their order; the pass ``cse`` is `eliminate_common`. `tintc.compile` runs
`calibrate_softmax_heads` by itself, because it needs a text. Parts of `canonicalise`: `fold_concats`, `fold_selects`,
`simplify_selects`, `rewrites`; of `assign_layers`: `layer_flow`; of `plan_layout`: `layout_candidates`.
"""
