"""A model of three levels, from a configuration file through the whole curriculum to text and filled gaps."""

from __future__ import annotations

import pytest
import torch

from tests.training_helpers import Run
from zonkey_core.checkpoint import load_model
from zonkey_core.config import load_config
from zonkey_core.inference.gap_windows import find_gaps
from zonkey_core.inference.generation import SamplingOptions, generate
from zonkey_core.inference.infilling import InfillingOptions, apply_fills, infill
from zonkey_core.model.model import Zonkey, text_sequence
from zonkey_core.training import FiguresEvent, StageEvent, fitting, trainer

LEVEL = """
[[model.levels]]
segment_length = {length}
window = {window}
width = 16
latents = 2
heads = 2
splitter_width = 16
splitter_ngrams = 512
reader_units = 512
decoder_layers = 1
denoiser_width = 32
denoiser_layers = 1
denoiser_heads = 2
vocabulary = 400
"""
TRAINING = """
[training]
row_bytes = 384
batch_rows = 2
shuffle_documents = 20
guide_bytes = 100000
"""
STAGES = [(name, level) for level in range(3) for name in ("splitter", "autoencoder", "denoiser")]
TEXT = (
    b"April is the fourth month of the year, and one of four months to have thirty days. "
    b"It comes between March and May."
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run over every stage on the bundled text."""
    folder = tmp_path_factory.mktemp("three")
    levels = [LEVEL.format(length=length, window=window) for length, window in ((4.0, 16), (3.0, 10), (3.0, 10))]
    (folder / "three.toml").write_text("".join(levels) + TRAINING)
    run = Run(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "REPORT_SECONDS", 0.0)
        patch.setattr(fitting, "BYTES_PER_STRING", 60)
        assert not run.train(load_config(folder / "three.toml"), steps=60, seed=1).stopped
    return run


@pytest.fixture(scope="module")
def model(run: Run) -> Zonkey:
    """What it left, as it is used."""
    return load_model(run.out)


def test_every_stage_of_every_level_is_trained(run: Run) -> None:
    begun = [(event.stage, event.level) for event in run.events if isinstance(event, StageEvent)]
    assert begun == [*STAGES, ("joint", None), STAGES[-1], ("plan", 1), ("plan", 0)]
    joint = [each.losses for each in run.steps() if each.level is None]
    assert joint and {name.partition("/")[0] for name in joint[-1]} == {"0", "1", "2"}
    (figures,) = [event.figures for event in run.events if isinstance(event, FiguresEvent)]
    assert {name.partition(":")[0] for name in figures} == {"level 0", "level 1", "level 2"}


def test_each_level_reads_the_one_below(model: Zonkey) -> None:
    views = model.ascend(text_sequence(TEXT, device=torch.device("cpu")), 2)
    counts = [int(view.slots.slot_mask.sum()) for view in views]
    assert len(TEXT) > counts[0] > counts[1] > counts[2] >= 1


@pytest.mark.parametrize("level", [None, 2, 1, 0])
@pytest.mark.parametrize("prompt", [b"", b"April is the"])
def test_text_is_generated_from_every_level(model: Zonkey, level: int | None, prompt: bytes) -> None:
    options = SamplingOptions(steps=4, max_bytes=120, level=level)
    samples = list(generate(model, seeds=[1, 2], options=options, prompt=prompt))
    for sample in samples:
        assert sample.text.startswith(prompt) and 0 < len(sample.text) <= 120
    (alone,) = generate(model, seeds=[2], options=options, prompt=prompt)
    assert alone == samples[1]


@pytest.mark.parametrize("gap", [b"fourth month", b"h of the year, and one of four mon"])
def test_gaps_are_filled(model: Zonkey, gap: bytes) -> None:
    before, _, after = TEXT.partition(gap)
    data = before + b"___" + after[:40] + b"___" + after[48:]
    fills = infill(model, data, find_gaps(data), seed=1, options=InfillingOptions(steps=4, candidates=2))
    filled = apply_fills(data, fills)
    assert filled.startswith(before) and filled.endswith(after[48:]) and after[:40] in filled
    assert len(fills) == 2
