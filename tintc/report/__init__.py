"""The page that `tintc report` writes: a simulator's modules, what it learns from a text, and how well."""
