"""How n-grams are looked up by hash: what every form of the splitter, in torch or without it, must agree on."""

from __future__ import annotations

NGRAM_ORDERS = (1, 2, 3, 4, 5)
"""Lengths of the n-grams of units that a splitter looks up."""
ESTIMATE_ORDERS = (1, 2, 3, 4)
"""Units before one from which, together, it is estimated what it costs."""
NO_SYMBOL = -1
"""The key of what stands before the first of symbols that are not bytes."""
SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)
"""An odd number that spreads what it multiplies over 64 bits."""
TABLE_WIDTH = 32
"""Channels of tables, before they are projected."""
PRINTS = 254
"""Prints, from 1 on, by which n-grams that fall on one row of a table are told apart."""
NOBODY = 255
"""The print of no n-gram: what a row has that belongs to none."""
STAND_INS = 128
"""Kinds of units, at most, in whose place others stand in n-grams of more than one."""
SHARED = 0
"""What a row has that is for all n-grams that fall on it, as long as nobody has claimed any."""
