"""From a Hugging Face decoder to a program of the auxiliary dialect.

- `source`: the model from a folder, a GGUF file, the hub or memory, checked.
- `graph`: its graph by `torch.export`, and questions to it.
- `rules`: the operations that are recognised, in order (`rule`: what a rule is; `builder`: what it builds with).
- `attention`: the rule that reads an attention, with its heads, rotations, masks and scores.
- `experts`: mixtures of experts and their routers; `mixers`: functions that mix tokens other than by attention.
- `importer`: the program, by the rules; `agreement`: its comparison with the model.
"""
