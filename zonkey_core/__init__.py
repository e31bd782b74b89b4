"""The Zonkey model (arXiv 2601.21768): a hierarchical diffusion language model with no fixed tokenizer.

This package knows nothing of a terminal; `zonkey_cli` does.
"""

__version__ = "0.1.0"
