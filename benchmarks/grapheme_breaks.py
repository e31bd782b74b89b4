"""Write what the units of text are found by: how Unicode's code points join into extended grapheme clusters.

    python benchmarks/grapheme_breaks.py zonkey_core/model/grapheme_breaks.bin

The properties are those of the installed `regex`: Grapheme_Cluster_Break, Extended_Pictographic and
Indic_Conjunct_Break (Unicode Standard Annex 29). The file holds runs of code points of one kind: little-endian 32-bit
first code points, then a byte for the kind of each, as `zonkey_core.model.units.BreakKind` says. Only code points
outside the syllables of Hangul count, whose kinds follow from their place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import regex

from zonkey_core.model.units import HANGUL_SYLLABLES, BreakKind

CODE_POINTS = 0x110000
NAMES = {
    "GCB=CR": BreakKind.CR,
    "GCB=LF": BreakKind.LF,
    "GCB=Control": BreakKind.CONTROL,
    "GCB=Extend": BreakKind.EXTEND,
    "GCB=ZWJ": BreakKind.JOINER,
    "GCB=SpacingMark": BreakKind.SPACING,
    "GCB=Prepend": BreakKind.PREPEND,
    "GCB=L": BreakKind.HANGUL_L,
    "GCB=V": BreakKind.HANGUL_V,
    "GCB=T": BreakKind.HANGUL_T,
    "GCB=RI": BreakKind.REGIONAL,
    "ExtPict": BreakKind.PICTOGRAPH,
    "InCB=Linker": BreakKind.LINKER,
    "InCB=Consonant": BreakKind.CONSONANT,
    "InCB=Extend": BreakKind.CONJOINED,
}


def kinds() -> bytes:
    """The content of the file."""
    found = np.zeros(CODE_POINTS, dtype=np.uint8)
    everything = "".join(map(chr, range(CODE_POINTS)))
    for name, kind in NAMES.items():
        for match in regex.finditer(rf"\p{{{name}}}+", everything):
            found[slice(*match.span())] |= np.uint8(kind)
    found[HANGUL_SYLLABLES.start : HANGUL_SYLLABLES.stop] = 0
    firsts = np.flatnonzero(np.diff(found, prepend=found[:1] ^ 1))
    return firsts.astype("<u4").tobytes() + found[firsts].tobytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="where to write the table")
    parser.parse_args().file.write_bytes(kinds())
