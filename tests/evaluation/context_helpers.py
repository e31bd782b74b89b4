"""What the tests of the runner and of speed share: an evaluation of a very small model on text written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.model_helpers import TEXT, small_model
from zonkey_core.checkpoint import CONFIG, MODEL, describe, pack_tensors
from zonkey_core.committed_files import write_files
from zonkey_core.config import Config, TrainingConfig
from zonkey_core.evaluation.context import EvaluationContext, EvaluationOptions
from zonkey_core.evaluation.store import Store
from zonkey_core.evaluation.tasks.runner import identify_model
from zonkey_core.evaluation.texts import EvaluationTexts
from zonkey_core.model.model import Zonkey


def documents(count: int, name: str) -> list[bytes]:
    """Different documents of about 800 bytes."""
    return [f"{name} number {index}. {TEXT * 4}".encode() for index in range(count)]


def save_model(model: Zonkey, folder: Path) -> Path:
    """A model folder with very small batches."""
    config = Config(model=model.config, training=TrainingConfig(row_bytes=64, batch_rows=2))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    write_files(folder, {CONFIG: describe(config, parameters), MODEL: pack_tensors(model.state_dict())})
    return folder


def small_context(folder: Path, *, levels: int = 2, **changes: Any) -> EvaluationContext:
    """An evaluation whose model and store lie in `folder`."""
    model = small_model(levels).eval().requires_grad_(False)
    path = save_model(model, folder / "model")
    fields: dict[str, Any] = {
        "model": model,
        "model_path": path,
        "model_identity": identify_model(path),
        "texts": EvaluationTexts(
            reference=documents(4, "scored"), judging=documents(4, "judged"), training=documents(8, "learned")
        ),
        "options": EvaluationOptions(limit=4_000, sample_bytes=64),
        "store": Store(folder / "store"),
        "report": lambda what, share: None,
        **changes,
    }
    return EvaluationContext(**fields)
