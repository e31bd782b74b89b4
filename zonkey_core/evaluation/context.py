"""What every part of the evaluation is given: the model, the texts, the settings, and those it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from zonkey_core.evaluation.store import Store
from zonkey_core.evaluation.texts import EvaluationTexts

if TYPE_CHECKING:
    from zonkey_core.inference.gap_windows import Gap
    from zonkey_core.model.model import Zonkey


class EvaluationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. Everything scales with `limit`, the text that is scored, so that a small one is quick."""

    limit: int = 1_000_000
    """Most bytes of held-out text that are scored."""
    seed: int = 0
    sample_bytes: int = 512
    most_samples: int = 200

    @property
    def samples(self) -> int:
        """Texts that are generated."""
        return max(8, min(self.most_samples, self.limit // 5_000))

    @property
    def gaps(self) -> int:
        """Gaps of each size that are filled."""
        return max(4, min(300, self.limit // 5_000))

    @property
    def training_bytes(self) -> int:
        """Most bytes of training text that rivals and floors learn from."""
        return min(20_000_000, 20 * self.limit)


class Contestant(Protocol):
    """A system that is compared with the model; benchmarks/rivals.py has two."""

    @property
    def name(self) -> str:
        """Key in the results, as `autoregressive`."""

    @property
    def identity(self) -> str:
        """What changes when its answers may change, as a hash of its weights."""

    def generate(self, count: int, max_bytes: int, seed: int) -> list[bytes]:
        """Texts of at most `max_bytes` bytes from noise or from nothing."""

    def infill(self, text: bytes, gaps: Sequence[Gap], answers: Sequence[bytes], seed: int) -> list[bytes]:
        """Fill the gaps of a text; the true answers may be used for their lengths alone, where a method needs them."""

    def nats(self, texts: Sequence[bytes]) -> Sequence[float] | None:
        """-log p of each text's bytes from its beginning, given that it does not end before; None where that is not
        exactly known."""

    def train_step(self) -> int:
        """One step of training on a batch of its own, for timing; returns the bytes that it read."""


class Language(NamedTuple):
    """Text with known words, and raw text of its language."""

    name: str
    lines: list[list[str]]
    """Lines as lists of their words, which add up to the line; what is white space alone is no word."""
    training: list[bytes]
    """What rivals learn from."""


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """One evaluation."""

    model: Zonkey
    model_path: Path
    model_identity: str
    """Hash of the model's weights and configuration."""
    texts: EvaluationTexts
    options: EvaluationOptions
    store: Store
    """Where judges, rivals and finished parts are kept."""
    report: Callable[[str, float | None], None]
    """Called with what is being done, and the share of it that is done, where that is known."""
    domains: Sequence[tuple[str, bytes]] = ()
    """Names and beginnings of texts from other domains."""
    gold: Sequence[Sequence[str]] = ()
    """Paragraphs as lists of their true sentences."""
    languages: Sequence[Language] = ()
    """Text with known words of some languages."""
    contestants: Sequence[Contestant] = field(default_factory=tuple)
