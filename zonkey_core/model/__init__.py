"""The network: one module per term of the paper, a level that holds them, and the stack of levels."""
