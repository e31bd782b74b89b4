"""Whether a splitter's probabilities tell its reader what was hidden, beyond where segments begin.

    python benchmarks/side_channel.py --model DIR --data wiki --data-dir ~/wikipedia

Prints the masked loss of level 0, in nats per hidden unit of held-out text, when the reader is given

- p as in training, from the text with other units in place of the hidden ones;
- cuts drawn from that p, certain ones, which have lost all that a probability could say beside them;
- p from another masking of the same text, which knows nothing of what this one hides;
- the same p moved to other places: all turned by half their number, so that rate and lengths stay;
- no cuts at all, and a cut everywhere.

If p were a side channel, the second and the third would lose what p gains over the fourth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from zonkey_core.checkpoint import load_model
from zonkey_core.data import SourceSpec
from zonkey_core.model.existence import sample_starts
from zonkey_core.model.readers import ContextReader, UnitKinds
from zonkey_core.model.segment_splitter import hide_units
from zonkey_core.model.unit_rows import unit_rows
from zonkey_core.training.validation import held_out_rows

ROW_BYTES, ROWS = 1024, 128
ROUNDS = 4


@torch.no_grad()
def masked_losses(model_path: Path, spec: SourceSpec) -> dict[str, float]:
    """Mean loss of each way to choose `p`."""
    level = load_model(model_path).bottom
    sequence = held_out_rows(spec, ROW_BYTES, ROWS)
    if sequence is None:
        raise SystemExit("the data has no validation text to fill a row")
    if not isinstance(level.reader, ContextReader):
        raise SystemExit("this model's splitter has learned from a lexicon, not from a reader")
    generator = torch.Generator().manual_seed(0)
    units = unit_rows(sequence)
    kinds = UnitKinds(units.keys)
    sums: dict[str, float] = {}
    count = 0
    for _ in range(ROUNDS):
        hidden, shown = hide_units(units, level.config.mask_rate, generator)
        _, other = hide_units(units, level.config.mask_rate, generator)
        prob = level.splitter.split_units(shown).start_prob
        ways: dict[str, Tensor] = {
            "p of the masked text": prob,
            "cuts drawn from it": sample_starts(prob[None], generator)[0].float(),
            "cuts above one half": (prob > 0.5).float(),
            "p of another masking": level.splitter.split_units(other).start_prob,
            "p of the clean text": level.splitter.split_units(units).start_prob,
            "p moved elsewhere": prob.roll(len(prob) // 2),
            "no cuts": torch.zeros_like(prob),
            "cuts everywhere": torch.ones_like(prob),
        }
        asked = hidden.nonzero().flatten()
        for name, start_prob in ways.items():
            states = level.reader(shown.keys, hidden, start_prob)
            sums[name] = sums.get(name, 0.0) + float(level.reader.units.loss(states, kinds, asked).sum())
        count += len(asked)
    return {name: value / count for name, value in sums.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=["wiki"])
    parser.add_argument("--data-config", default="20231101.en")
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    spec = SourceSpec(sources=tuple(options.data), wiki_config=options.data_config, wiki_dir=options.data_dir)
    for name, loss in masked_losses(options.model, spec).items():
        print(f"{name:24}{loss:.4f}")


if __name__ == "__main__":
    main()
