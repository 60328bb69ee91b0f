"""The paper's experiments: language modelling (Table 1) and in-context learning (Tables 2, 4 and 5)."""
