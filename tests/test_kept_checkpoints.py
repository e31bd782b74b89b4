"""Checksums, and the checkpoints before the last: damage is noticed, and there is a way back from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.training_helpers import Run, assert_same_tensors, small_config
from zonkey_core.checkpoint import (
    CHECKSUMS,
    CONFIG,
    KEPT,
    MODEL,
    OPTIMIZER,
    TRAINING,
    kept_steps,
    load_model,
    read_model_card,
)
from zonkey_core.errors import CheckpointError
from zonkey_core.kept_checkpoints import drop_kept, keep_present, write_kept
from zonkey_core.training.saving import LEAST_SECONDS, SHARE, SavingRhythm

STEPS = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that saved after every step and kept three checkpoints; it must not be changed."""
    run = Run(tmp_path_factory.mktemp("kept") / "model")
    run.train(small_config(1), steps=STEPS, stage="splitter", save_every=0.0, keep=3)
    return run


def flip_bit(path: Path, place: int) -> None:
    """Change one bit of a file, as a failing disk does."""
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [CONFIG, MODEL, TRAINING])
@pytest.mark.parametrize("place", [20, 1000, -1])
def test_one_flipped_bit_is_noticed(whole: Run, tmp_path: Path, name: str, place: int) -> None:
    folder = Path(shutil.copytree(whole.out, tmp_path / "model"))
    flip_bit(folder / name, place)
    for prefixes in (("",), ("bottom.splitter.",)):
        with pytest.raises(CheckpointError) as caught:
            load_model(folder, prefixes=prefixes)
        assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_checkpoint_leads_to_the_one_before(whole: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.out, tmp_path / "model"))
    flip_bit(folder / OPTIMIZER, -5)
    run = Run(folder)
    with pytest.raises(CheckpointError, match=rf"--resume --out {folder} --back-to {STEPS - 1}' goes on from it"):
        run.resume()
    assert run.resume(back_to=STEPS - 2, stop_at=1).steps == STEPS - 1
    assert kept_steps(folder) == [STEPS - 2], "later ones are of a future that did not come"
    result = run.resume()
    assert (result.stopped, result.steps) == (False, STEPS)
    assert_same_tensors(run.tensors(), whole.tensors())
    assert (folder / MODEL).read_bytes() == (whole.out / MODEL).read_bytes()


def test_a_damaged_earlier_checkpoint_is_refused(whole: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.out, tmp_path / "model"))
    kept = folder / KEPT / str(STEPS - 1)
    flip_bit(kept / OPTIMIZER, 3000)
    with pytest.raises(CheckpointError, match="copy or train the model again"):
        Run(folder).resume(back_to=STEPS - 1)
    with pytest.raises(CheckpointError, match=rf"no checkpoint of step 99; .* {STEPS - 2}, {STEPS - 1}$"):
        Run(folder).resume(back_to=99)


def test_the_last_ones_are_kept_and_each_is_a_model(whole: Run) -> None:
    assert kept_steps(whole.out) == [STEPS - 2, STEPS - 1]
    assert {path.name for path in (whole.out / KEPT).iterdir()} == {str(STEPS - 2), str(STEPS - 1)}
    for step in kept_steps(whole.out):
        record = read_model_card(whole.out / KEPT / str(step)).training
        assert record is not None and record.steps == step
        load_model(whole.out / KEPT / str(step))


@pytest.mark.parametrize("keep", [1, 2])
def test_as_many_are_kept_as_asked(tmp_path: Path, keep: int) -> None:
    run = Run(tmp_path / "model")
    run.train(small_config(1), steps=9, stage="splitter", save_every=0.0, stop_at=4, keep=keep)
    assert kept_steps(run.out) == [1, 2, 3][4 - keep :]
    run.resume(stop_at=6, changes={"keep": 3})
    assert kept_steps(run.out) == [4, 5]


def test_a_folder_without_checksums_is_read(whole: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.out, tmp_path / "model"))
    (folder / CHECKSUMS).unlink()
    load_model(folder)
    assert Run(folder).resume().steps == STEPS


def test_files_may_be_left_out_of_a_copy(whole: Run, tmp_path: Path) -> None:
    for name in (CONFIG, MODEL, CHECKSUMS):
        shutil.copy(whole.out / name, tmp_path)
    load_model(tmp_path)


def test_the_bundled_model_has_checksums() -> None:
    """After a change of one of its files: python benchmarks/checksums.py zonkey_core/pretrained."""
    import zonkey_core

    folder = Path(zonkey_core.__path__[0]) / "pretrained"
    assert (folder / CHECKSUMS).is_file()
    load_model(folder)


def test_a_crash_between_keeping_and_writing_is_seen_through(whole: Run, tmp_path: Path) -> None:
    """The present checkpoint is then among the kept ones, too; the way back leads past it."""
    folder = Path(shutil.copytree(whole.out, tmp_path / "model"))
    keep_present(folder, STEPS)
    assert kept_steps(folder)[-1] == STEPS
    flip_bit_in_place(folder / MODEL)
    with pytest.raises(CheckpointError, match=f"--back-to {STEPS - 1}'"):
        load_model(folder)


def flip_bit_in_place(path: Path) -> None:
    """Change a bit without giving the file's other names another content."""
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def test_links_are_copies_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*given: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    for step in range(4):
        write_kept(tmp_path, {CONFIG: b"%d" % step}, steps=step, before=step - 1 if step else None, keep=3)
    assert kept_steps(tmp_path) == [1, 2]
    assert [(tmp_path / KEPT / f"{step}" / CONFIG).read_bytes() for step in (1, 2)] == [b"1", b"2"]


def test_a_link_in_place_of_the_kept_ones_is_not_followed(tmp_path: Path) -> None:
    folder, other = tmp_path / "model", tmp_path / "photographs"
    folder.mkdir()
    (other / "2019").mkdir(parents=True)
    (folder / KEPT).symlink_to(other)
    assert kept_steps(folder) == []
    for action in (lambda: keep_present(folder, 3), lambda: drop_kept(folder, keep=0, steps=5)):
        with pytest.raises(CheckpointError, match="is a link"):
            action()
    assert (other / "2019").exists()


# When


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_save_is_at_once_and_the_next_ones_cost_little() -> None:
    clock = Clock()
    rhythm = SavingRhythm(None, resumed=False, clock=clock)
    spent, start = 0.0, clock.now
    while clock.now < start + 10_000:
        if rhythm.due():
            with rhythm.measured():
                clock.now += 1.5
            spent += 1.5
            if spent == 1.5:
                assert clock.now == start + 1.5
        clock.now += 0.1
    assert 0.9 * SHARE <= spent / 10_000 <= SHARE


def test_a_save_in_two_pieces_counts_as_one() -> None:
    clock = Clock()
    rhythm = SavingRhythm(None, resumed=False, clock=clock)
    for goes_on in (False, True):
        with rhythm.measured(goes_on=goes_on):
            clock.now += 1.5
        clock.now += 20
    clock.now += 3.0 / SHARE - 20.1
    assert not rhythm.due()
    clock.now += 0.2
    assert rhythm.due()


def test_quick_saves_are_not_made_all_the_time() -> None:
    clock = Clock()
    rhythm = SavingRhythm(None, resumed=True, clock=clock)
    assert not rhythm.due()
    clock.now += LEAST_SECONDS
    assert rhythm.due()
    with rhythm.measured():
        pass
    assert not rhythm.due()


def test_a_time_between_saves_is_kept_to() -> None:
    clock = Clock()
    rhythm = SavingRhythm(30.0, resumed=False, clock=clock)
    assert rhythm.due()
    with rhythm.measured():
        clock.now += 10
    clock.now += 29
    assert not rhythm.due()
    clock.now += 1
    assert rhythm.due()
