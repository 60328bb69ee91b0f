"""Ops of mixtures of experts: the router, what spreads and combines, and the linear layers of the experts."""
