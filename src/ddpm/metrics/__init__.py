"""How good a model is: its likelihood, and its samples beside real images."""
