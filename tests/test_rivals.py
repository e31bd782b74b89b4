"""The neural rivals of benchmarks/rivals.py: honest sizes, losses and sampling, and one run from end to end."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT, clean_environment
from tests.model_helpers import chance
from zonkey_core.config import TrainingConfig, load_preset
from zonkey_core.data import SourceSpec, open_stream
from zonkey_core.data.rows import RowBatch
from zonkey_core.errors import CheckpointError, ConfigError, ZonkeyError
from zonkey_core.evaluation.texts import load_texts
from zonkey_core.inference.gap_windows import Gap
from zonkey_core.model.model import Zonkey

with pytest.MonkeyPatch.context() as patched:
    patched.syspath_prepend(str(ROOT / "benchmarks"))
    autoregressive, masked_diffusion, neural_rival, rivals = (
        importlib.import_module(name) for name in ("autoregressive", "masked_diffusion", "neural_rival", "rivals")
    )

ROW = 16
TEXT = b"Heron flew."
BUILDERS = {"autoregressive": rivals.build_autoregressive, "masked_diffusion": rivals.build_masked}
CLOCK_STEPS = 6


def recipe(kind: str, **changes: Any) -> Any:
    """A recipe of a network of a few thousand numbers."""
    training = TrainingConfig(row_bytes=ROW, batch_rows=4, shuffle_documents=20, average_decay=0.9)
    fields = {
        "kind": kind, "width": 32, "layers": 2, "row_bytes": ROW, "parameters": 0, "minutes": CLOCK_STEPS / 60,
        "seed": 0, "device": "cpu", "data": SourceSpec(sources=("sample",)), "training": training,
    }
    return neural_rival.Recipe(**{**fields, **changes})


def document_rows(text: bytes = TEXT, rows: int = 24) -> RowBatch:
    """Rows of one short document after another."""
    symbols = np.frombuffer(text * (rows * ROW // len(text) + 1), np.uint8)[: rows * ROW]
    starts = np.arange(rows * ROW) % len(text) == 0
    return RowBatch(bytes=symbols.reshape(rows, ROW), document_starts=starts.reshape(rows, ROW))


def contestant(kind: str, network: Any = None, **drawing: Any) -> Any:
    """A contestant with a network, by default an untrained one."""
    torch.manual_seed(0)
    network = BUILDERS[kind](32, 2, ROW) if network is None else network
    network.eval().requires_grad_(False)
    module = autoregressive if kind == "autoregressive" else masked_diffusion
    rival = autoregressive.AutoregressiveRival if kind == "autoregressive" else masked_diffusion.MaskedRival
    return rival(network, recipe(kind), document_rows(), name=kind, drawing=module.Drawing(**drawing))


@functools.cache
def taught(kind: str) -> Any:
    """A network that has read one short document again and again, and nothing else."""
    torch.manual_seed(0)
    training = msgspec.structs.replace(recipe(kind).training, learning_rate=6e-3, matrix_learning_rate=0.02)
    updates = neural_rival.Updates(BUILDERS[kind](64, 2, ROW), training, seed=0)
    losses = [updates.update(document_rows(), step / 160) for step in range(160)]
    assert losses[0] > 4 and np.mean(losses[-20:]) < 0.3
    return updates.average


class Oracle(masked_diffusion.MaskedDiffusion):  # type: ignore[name-defined,misc]
    """Knows that a row is one of two symbols twice; with `blind`, it does not look at the other position."""

    def __init__(self, *, blind: bool) -> None:
        super().__init__(32, 1)
        self.blind = blind

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits [B, 2, SYMBOLS]."""
        either = torch.full((*symbols.shape, neural_rival.SYMBOLS), -torch.inf)
        either[..., [65, 66]] = 0.0
        if not self.blind:
            other = symbols.flip(1)
            seen = other != masked_diffusion.MASK
            either[seen] = -torch.inf
            either[seen, other[seen]] = 0.0
        return either


def test_boundaries_stand_before_documents_and_the_rest_moves_on() -> None:
    batch = RowBatch(
        bytes=np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
        document_starts=np.array([[True, False, False], [False, True, False]]),
    )
    assert neural_rival.document_symbols(batch).tolist() == [[256, 1, 2], [3, 4, 256]]


def test_drawing_follows_temperature_and_the_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(4000, 3)

    def shares(**settings: float) -> list[float]:
        drawn = neural_rival.draw(logits, generator=chance(1), **settings)
        return [float((drawn == symbol).float().mean()) for symbol in range(3)]

    assert shares(temperature=1.0, top_p=1.0) == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert shares(temperature=0.5, top_p=1.0) == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.03)
    assert shares(temperature=1.0, top_p=0.6) == pytest.approx([5 / 8, 3 / 8, 0], abs=0.03)
    assert shares(temperature=1.0, top_p=0.1) == [1, 0, 0]


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_sizes_match_the_models(kind: str, preset: str) -> None:
    with torch.device("meta"):
        target = neural_rival.count_parameters(Zonkey(load_preset(preset).model))
    size = neural_rival.match_size(target, BUILDERS[kind], 512)
    assert abs(size.parameters - target) <= 0.02 * target
    assert size.width % 16 == 0
    assert neural_rival.count_parameters(neural_rival.on_meta(BUILDERS[kind], size.width, size.layers, 512)) == (
        size.parameters
    )


def test_a_size_that_cannot_be_matched_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger preset"):
        neural_rival.match_size(5000, rivals.build_masked, 512)


def test_heads_divide_every_width_evenly() -> None:
    for width in range(16, 1100, 16):
        heads = neural_rival.heads_of(width)
        assert width % (2 * heads) == 0 and 16 <= width // heads <= 64, width


def test_writing_with_the_cache_is_writing_without(monkeypatch: pytest.MonkeyPatch) -> None:
    rival = contestant("autoregressive")
    seen: list[Tensor] = []
    drawn: list[Tensor] = []

    def draw(logits: Tensor, **settings: Any) -> Tensor:
        seen.append(logits)
        drawn.append(neural_rival.draw(logits, **settings))
        return drawn[-1]

    monkeypatch.setattr(autoregressive, "draw", draw)
    texts = rival.generate(3, ROW, 5)
    rows = torch.cat([torch.full((3, 1), neural_rival.BOUNDARY), torch.stack(drawn, 1)], 1)
    expected = rival.writer(rows[:, :-1]).log_softmax(-1)
    torch.testing.assert_close(torch.stack(seen, 1).log_softmax(-1), expected, rtol=1e-4, atol=1e-4)
    for text, row in zip(texts, rows[:, 1:].tolist(), strict=True):
        assert list(text) == list(itertools.takewhile(lambda symbol: symbol != neural_rival.BOUNDARY, row))


def test_the_causal_loss_is_that_of_the_next_symbol() -> None:
    network = rivals.build_autoregressive(32, 2, ROW)
    symbols = neural_rival.document_symbols(document_rows())
    log_probs = network(symbols).log_softmax(-1)
    expected = -sum(
        log_probs[row, place - 1, symbols[row, place]] for row in range(24) for place in range(1, ROW)
    ) / (24 * (ROW - 1))
    torch.testing.assert_close(network.loss(symbols, chance(0)), expected)


@pytest.mark.parametrize("kind", BUILDERS)
def test_rows_of_all_lengths_are_learned_from(kind: str) -> None:
    network = BUILDERS[kind](32, 1, neural_rival.LONGEST_ROW)
    for length in (ROW, neural_rival.LONGEST_ROW):
        symbols = torch.randint(neural_rival.SYMBOLS, (2, length), generator=chance(0))
        network.loss(symbols, chance(0)).backward()
        gradient = network.embedding.weight.grad
        assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


@pytest.mark.parametrize("kind", BUILDERS)
def test_texts_may_be_longer_than_rows_and_none_is_too_long(kind: str) -> None:
    network = BUILDERS[kind](32, 2, ROW)
    with torch.no_grad():
        network.output_bias[neural_rival.BOUNDARY] = -100
    rival = contestant(kind, network)
    texts = rival.generate(3, 3 * ROW, 1)
    assert texts == rival.generate(3, 3 * ROW, 1) != rival.generate(3, 3 * ROW, 2)
    assert len(set(texts)) == 3 and [len(text) for text in texts] == [3 * ROW] * 3
    assert [len(text) for text in rival.generate(2, 5, 1)] == [5, 5]


def test_an_ignorant_network_has_the_loss_of_chance() -> None:
    network = rivals.build_masked(32, 1, ROW)
    torch.nn.init.zeros_(network.embedding.weight)
    network.requires_grad_(False)
    symbols = torch.randint(256, (64, ROW), generator=chance(0))
    losses = [float(network.loss(symbols, chance(seed))) for seed in range(100)]
    assert np.mean(losses) == pytest.approx(math.log(neural_rival.SYMBOLS), rel=0.02)


@pytest.mark.parametrize(("blind", "nats"), [(False, math.log(2) / 2), (True, math.log(2))])
def test_the_bound_of_two_equal_symbols(blind: bool, nats: float) -> None:
    """A row AA or BB has ln 2 nats. One who sees has 2 ln 2 when both are masked, t^2 of the time, else none:
    the integral of t^2 * 2 ln 2 / t is ln 2, the bound is tight. One who does not look has ln 2 for each mask."""
    symbols = torch.tensor([[65, 65], [66, 66]]).repeat(32, 1)
    network = Oracle(blind=blind).requires_grad_(False)
    losses = [float(network.loss(symbols, chance(seed))) for seed in range(400)]
    assert np.mean(losses) == pytest.approx(nats, rel=0.05)


def test_masks_are_lifted_evenly_and_known_symbols_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    network = contestant("masked_diffusion").denoiser
    symbols = torch.randint(256, (20, 200), generator=chance(0))
    symbols[:, 50:150] = masked_diffusion.MASK
    left: list[int] = []
    forward = network.forward

    def counting(given: Tensor) -> Tensor:
        left.append(int((given == masked_diffusion.MASK).sum()))
        result: Tensor = forward(given)
        return result

    monkeypatch.setattr(network, "forward", counting)
    filled = masked_diffusion.unmask(network, symbols, masked_diffusion.Drawing(steps=4), chance(1))
    assert left == pytest.approx([2000, 1500, 1000, 500], rel=0.1)
    assert int(filled.max()) <= neural_rival.BOUNDARY
    known = symbols != masked_diffusion.MASK
    assert torch.equal(filled[known], symbols[known])
    assert len(filled[~known].unique()) > 200


def test_masked_fills_have_the_true_lengths_and_read_both_sides() -> None:
    rival = contestant("masked_diffusion", steps=8)
    text = b"The ___ stood in the shallows, na\xc3\xafve as ever, and waited ___ flew; nothing ___ was seen of ___"
    gaps = [Gap(place, place + 3) for place in range(len(text)) if text[place : place + 3] == b"___"]
    answers = [b"heron", b"all day before it", b"", b"a fish that it could have eaten, nor anything else at all"]
    fills = rival.infill(text, gaps, answers, 3)
    assert [len(fill) for fill in fills] == [len(answer) for answer in answers]
    assert fills == rival.infill(text, gaps, [b"x" * len(answer) for answer in answers], 3)
    assert fills[:1] != rival.infill(text.replace(b"stood", b"STOOD"), gaps, answers, 3)[:1]


def test_left_to_right_fills_know_neither_the_answer_nor_what_follows() -> None:
    rival = contestant("autoregressive")
    text = b"The heron ___ in the shallows, and ___ away."
    gaps = [Gap(place, place + 3) for place in range(len(text)) if text[place : place + 3] == b"___"]
    fills = rival.infill(text, gaps, [b"stood", b"flew"], 3)
    assert fills[0] == rival.infill(text.replace(b"shallows", b"SHALLOWS"), gaps, [b"", b"walked far"], 3)[0]
    assert fills != rival.infill(text.replace(b"heron", b"crane"), gaps, [b"stood", b"flew"], 3)


@pytest.mark.parametrize("words", [1, 2, 5])
def test_left_to_right_fills_end_behind_their_last_word(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter(b" a tree by the wide river  ")
    monkeypatch.setattr(autoregressive, "draw", lambda logits, **_settings: torch.tensor([next(given)]))
    monkeypatch.setattr(autoregressive, "GAP_WORDS", (words,))
    (fill,) = contestant("autoregressive").infill(b"It saw ___.", [Gap(7, 10)], [b""], 0)
    assert fill == b" " + b" ".join(b"a tree by the wide".split()[:words])


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_short_text_is_learned_with_its_end(kind: str) -> None:
    rival = contestant(kind, taught(kind), **({} if kind == "autoregressive" else {"steps": 32}))
    texts = rival.generate(8, ROW, 0)
    assert sum(text == TEXT for text in texts) >= 5
    gaps, answers = [Gap(6, 10)], [TEXT[6:10]]
    fills = [rival.infill(TEXT, gaps, answers, seed)[0] for seed in range(8)]
    assert sum(fill.startswith(answers[0]) for fill in fills) >= 6
    assert all(len(fill) == 4 for fill in fills) == (kind == "masked_diffusion")


@pytest.mark.parametrize("kind", BUILDERS)
def test_timing_a_step_leaves_the_contestant_as_it_is(kind: str) -> None:
    rival = contestant(kind)
    before = {name: tensor.clone() for name, tensor in rival._network.state_dict().items()}
    assert rival.train_step() == rival.train_step() == 24 * ROW
    assert all(torch.equal(tensor, before[name]) for name, tensor in rival._network.state_dict().items())
    assert rival.identity == contestant(kind).identity
    assert rival.identity != contestant(kind, temperature=0.5).identity
    assert rival.identity != contestant(kind, BUILDERS[kind](32, 2, ROW)).identity


def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes a second, so that a step does."""
    seconds = itertools.count()
    monkeypatch.setattr(neural_rival.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(neural_rival, "CHECKPOINT_SECONDS", 2.0)
    monkeypatch.setattr(neural_rival, "REPORT_SECONDS", 1.0)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick(monkeypatch)
    said: list[str] = []

    def stop_late(line: str) -> None:
        if f"step {CLOCK_STEPS - 1}" in line:
            raise KeyboardInterrupt

    whole = neural_rival.train_rival(tmp_path / "whole", BUILDERS[kind], recipe(kind), said.append)
    with pytest.raises(KeyboardInterrupt):
        neural_rival.train_rival(tmp_path / "parted", BUILDERS[kind], recipe(kind), stop_late)
    assert not (tmp_path / "parted" / "model.safetensors").exists()
    resumed: list[str] = []
    parted = neural_rival.train_rival(tmp_path / "parted", BUILDERS[kind], recipe(kind), resumed.append)
    assert sum("step" in line for line in said) == CLOCK_STEPS > sum("step" in line for line in resumed) > 0
    found: list[str] = []
    again = neural_rival.train_rival(tmp_path / "whole", BUILDERS[kind], recipe(kind), found.append)
    assert found == [f"{kind}: found in {tmp_path / 'whole'}"]
    for other in (parted, again):
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="--out"):
        neural_rival.train_rival(tmp_path / "whole", BUILDERS[kind], recipe(kind, seed=1), said.append)


def test_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch)
    wild = msgspec.structs.replace(recipe("autoregressive").training, learning_rate=math.inf)
    with pytest.raises(ZonkeyError, match="diverged"):
        neural_rival.train_rival(
            tmp_path / "wild", rivals.build_autoregressive, recipe("autoregressive", training=wild), print
        )


def test_what_is_scored_or_judged_was_not_learned_from() -> None:
    source = SourceSpec(sources=("sample",))
    texts = load_texts(source, None, limit=10**6, training_bytes=10**6, seed=0, by_splits=True)
    learned = set(open_stream(source, seed=0, shuffle_documents=9, repeat=False))
    assert learned == set(texts.training) and texts.reference and texts.judging
    assert not learned & {*texts.reference, *texts.judging} and not {*texts.reference} & {*texts.judging}


@pytest.mark.parametrize(("text", "count"), [("5000", 5000), ("200kB", 200_000), ("1.5 MB", 1_500_000)])
def test_amounts_of_text(text: str, count: int) -> None:
    assert rivals.byte_count(text) == count


@pytest.mark.parametrize(
    "given", [["--limit", "many"], ["--minutes", "0"], ["--top-p", "-1"], ["--masked-steps", "0"], ["--preset", "none"]]
)
def test_wrong_usage_is_exit_code_2(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        rivals.main([*given, "--out", str(tmp_path)])
    assert error.value.code == 2


def test_what_a_user_can_mend_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rivals.main(["--data", str(tmp_path / "missing"), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "missing" in captured.err


def test_the_autoregressive_one_knows_its_own_likelihood_and_the_masked_one_a_bound() -> None:
    rival = contestant("autoregressive")
    texts = [b"Heron", b"Heron flew over the water, and the reeds.", b""]
    for text, nats in zip(texts, rival.nats(texts), strict=True):
        cache, total = autoregressive.KeyValueCache(), 0.0
        symbols = torch.tensor([[neural_rival.BOUNDARY]])
        for byte in text:
            total -= float(rival.writer.read(symbols, cache)[0, -1, :256].log_softmax(-1)[byte])
            symbols = torch.tensor([[byte]])
        assert nats == pytest.approx(total, rel=1e-2, abs=1e-6)
    assert contestant("masked_diffusion").nats(texts) is None


def run_rivals(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The script as a process."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "rivals.py"), "--data", "sample", "--out", str(home / "out"),
         "--preset", "tiny", "--minutes", "0.1", "--limit", "4kB", "--masked-steps", "4", "--device", "cpu",
         "--set", "training.batch_rows=2", "--set", "training.row_bytes=128", *map(str, arguments)],
        env=clean_environment(home), capture_output=True, text=True, timeout=110, check=False,
    )


@pytest.mark.long
def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    done = run_rivals(tmp_path, "--json", "--part", "generate")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {name.split(".")[0] for name in result} - {"left_out"} == {"generate"}
    assert {"autoregressive", "masked_diffusion"} <= result["generate.known_words"]["rivals"].keys()
    assert done.stderr.count(": found in") == 0
    for kind in BUILDERS:
        kept = json.loads((tmp_path / "out" / kind / "training.json").read_text("utf-8"))
        assert 6 <= kept["seconds"] < 20 and kept["steps"] > 1
    again = run_rivals(tmp_path, "--part", "generate")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(": found in") == 3
    assert "known_words" in again.stdout and "autoregressive" in again.stdout
