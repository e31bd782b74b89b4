"""Measurements of a model on held-out text."""

from zonkey_core.evaluation.held_out import held_out_rows, quick_figures

__all__ = ["held_out_rows", "quick_figures"]
