"""Figures, each a function of texts or cuts, that are the same for every contestant."""
