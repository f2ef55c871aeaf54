"""Measures of a model: its likelihood, and the quality of its samples compared with real images."""
