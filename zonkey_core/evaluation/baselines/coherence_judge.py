"""The judge of coherence: how much likelier the words of a text's second half are for its own first half.

It knows nothing of grammar or of order. Words are foreseen from the bag of those in the first half, by a log-linear
model of the topic and by repeating them (a cache, Kuhn and De Mori 1990):

    p(w | h) = (1 - c) softmax_w(b + U x(h)) + c n_h(w) / |h|,   x(h) = sum_i a_i e_i / sqrt(sum_i a_i), i in h,

with b the logarithms of the words' shares, a weight a and vectors e, u for every word. The gain of a text is its log
probability for its own first half less the mean for those of all others beside it, so what makes a half easy in itself
cancels, and texts that are all the same gain nothing. It learns in seconds from documents that no contestant has seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zonkey_core.checkpoint import CONFIG, MODEL, pack_tensors, read_tensors
from zonkey_core.errors import CheckpointError
from zonkey_core.evaluation.context import EvaluationContext
from zonkey_core.evaluation.metrics.bootstrap import bootstrap_sums
from zonkey_core.evaluation.metrics.text_metrics import Gains, words
from zonkey_core.evaluation.results import Measure
from zonkey_core.evaluation.store import fingerprint

COMMONEST = 4_000
"""Words with vectors of their own; the others share one."""
WIDTH = 32
REPEATED = 0.1
"""c, the share of the cache."""
FREQUENT = 1e-3
"""Share of a word at which its weight is half of a rare one's before training."""
WINDOW = 80
"""Words from which a pair of halves is made in training, about as many as a sample has."""
LEAST_WORDS = 20
ROWS = 32
LEARNING_RATE, WEIGHT_DECAY = 5e-3, 0.1
READ_SHARE = 15
"""Bytes read in training for each that is scored."""
MOST_READ = 30_000_000
MOST_PASSES = 20


class TopicModel(nn.Module):
    """Log-probabilities of words for bags of words; word 0 stands for all that are not among the commonest."""

    log_shares: Tensor

    def __init__(self, log_shares: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_shares", log_shares)
        count = len(log_shares)
        self.read = nn.Parameter(torch.zeros(count, WIDTH))
        self.told = nn.Parameter(torch.zeros(count, WIDTH))
        self.log_weights = nn.Parameter(-torch.log1p(log_shares.exp() / FREQUENT))

    def forward(self, bags: Sequence[NDArray[np.int64]]) -> Tensor:
        """[B, W] for each of B bags, none of them empty."""
        sizes = torch.tensor([len(bag) for bag in bags])
        each = torch.from_numpy(np.concatenate(bags))
        weights = self.log_weights[each].exp()
        summed = functional.embedding_bag(
            each, self.read, sizes.cumsum(0) - sizes, mode="sum", per_sample_weights=weights
        )
        owner = torch.repeat_interleave(torch.arange(len(bags)), sizes)
        total = torch.zeros(len(bags)).index_add(0, owner, weights)
        return (self.log_shares + summed / total.sqrt().unsqueeze(1) @ self.told.T).log_softmax(-1)


class CoherenceJudge:
    """A trained topic model with its words."""

    def __init__(self, model: TopicModel, vocabulary: Sequence[str], kinds: int) -> None:
        self.model = model
        self.kinds = kinds
        """Different words that were met; those without vectors are taken to be equally likely among so many."""
        self._numbers = {word: number for number, word in enumerate(vocabulary, 1)}

    def gains(self, texts: Sequence[bytes]) -> Gains:
        """What the second half of each text gains from its own first half over those of the other texts."""
        return self.gains_of_halves([_halves(text) for text in texts])

    @torch.no_grad()
    def gains_of_halves(self, halves: Sequence[tuple[bytes, bytes]]) -> Gains:
        """The same of texts that are parted already."""
        usable = [index for index, (first, second) in enumerate(halves) if words(first) and words(second)]
        nats, sizes = np.zeros(len(halves)), np.zeros(len(halves))
        if len(usable) < 2:
            return Gains(nats, sizes)
        firsts = [words(halves[index][0]) for index in usable]
        seconds = [Counter(words(halves[index][1])) for index in usable]
        told = self.model([self.numbers(first) for first in firsts]).double().exp().numpy()
        repeated = _Repeated(firsts)
        for place, (index, second) in enumerate(zip(usable, seconds, strict=True)):
            numbers = self.numbers(list(second))
            fresh = told[:, numbers] * np.where(numbers == 0, 1 / self.kinds, 1.0)
            probs = (1 - REPEATED) * fresh + REPEATED * repeated.shares(list(second))
            scores = np.log(probs) @ np.array(list(second.values()), np.float64)
            nats[index] = scores[place] - (scores.sum() - scores[place]) / (len(usable) - 1)
            sizes[index] = len(halves[index][1])
        return Gains(nats, sizes)

    def numbers(self, text: Sequence[str]) -> NDArray[np.int64]:
        """[n] words as the model counts them."""
        return np.array([self._numbers.get(word, 0) for word in text], np.int64)

    def save(self, directory: Path) -> None:
        """Write it into an existing folder."""
        (directory / CONFIG).write_bytes(msgspec.json.encode(_Words(list(self._numbers), self.kinds)))
        (directory / MODEL).write_bytes(pack_tensors(self.model.state_dict()))


class _Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a judge keeps beside its tensors."""

    vocabulary: list[str]
    kinds: int


class _Repeated:
    """How often words stand in some texts [T]."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._sizes = np.array([len(text) for text in texts], np.float64)
        self._places: dict[str, Counter[int]] = {}
        for number, text in enumerate(texts):
            for word in text:
                self._places.setdefault(word, Counter())[number] += 1

    def shares(self, asked: Sequence[str]) -> NDArray[np.float64]:
        """[T, n] the share of each text that each word is."""
        times = np.zeros((len(self._sizes), len(asked)))
        for column, word in enumerate(asked):
            for number, count in self._places.get(word, {}).items():
                times[number, column] = count
        return times / self._sizes[:, None]


def fit_coherence_judge(
    documents: Sequence[bytes], *, read_bytes: int, seed: int, report: Callable[[float], None]
) -> CoherenceJudge:
    """A judge that has read about `read_bytes` bytes of the documents, as pairs of halves of `WINDOW` words.

    Of documents that are all shorter than `LEAST_WORDS`, it learns how frequent words are, and no topics.
    """
    spelled = [words(document) for document in documents]
    counts = Counter(word for document in spelled for word in document)
    vocabulary = [word for word, _ in counts.most_common(COMMONEST)]
    seen = np.array([counts.total() - sum(counts[word] for word in vocabulary), *map(counts.__getitem__, vocabulary)])
    model = TopicModel(torch.from_numpy(np.log((seen + 0.5) / (seen + 0.5).sum())).float())
    nn.init.normal_(model.read, std=0.1, generator=torch.Generator().manual_seed(seed))
    judge = CoherenceJudge(model, vocabulary, max(1, len(counts)))
    long_enough = [judge.numbers(document) for document in spelled if len(document) >= LEAST_WORDS]
    if long_enough:
        bytes_per_word = sum(map(len, documents)) / counts.total()
        _learn(model, long_enough, max(1, int(read_bytes / bytes_per_word / WINDOW / ROWS)), seed, report)
    model.eval().requires_grad_(False)
    return judge


def _learn(
    model: TopicModel, documents: Sequence[NDArray[np.int64]], steps: int, seed: int, report: Callable[[float], None]
) -> None:
    """Foresee second halves from first ones, in windows drawn from documents by their lengths."""
    vectors = {"params": [model.read, model.told], "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.AdamW([vectors, {"params": [model.log_weights], "weight_decay": 0.0}], lr=LEARNING_RATE)
    chance = np.random.default_rng(seed)
    sizes = np.array([len(document) for document in documents], np.float64)
    for step in range(steps):
        firsts, seconds = [], []
        for number in chance.choice(len(documents), ROWS, p=sizes / sizes.sum()):
            document = documents[number]
            begin = int(chance.integers(max(1, len(document) - WINDOW + 1)))
            window = document[begin : begin + WINDOW]
            firsts.append(window[: len(window) // 2])
            seconds.append(window[len(window) // 2 :])
        owner = np.repeat(np.arange(ROWS), [len(second) for second in seconds])
        loss = functional.nll_loss(model(firsts)[torch.from_numpy(owner)], torch.from_numpy(np.concatenate(seconds)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        report((step + 1) / steps)


def load_coherence_judge(directory: Path) -> CoherenceJudge:
    """Read what `CoherenceJudge.save` wrote; raises `CheckpointError`."""
    try:
        kept = msgspec.json.decode((directory / CONFIG).read_bytes(), type=_Words)
        model = TopicModel(torch.zeros(len(kept.vocabulary) + 1))
        model.load_state_dict(read_tensors(directory, MODEL))
    except (OSError, msgspec.DecodeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory}: cannot be read ({reason}); delete it and measure again") from error
    return CoherenceJudge(model.eval().requires_grad_(False), kept.vocabulary, kept.kinds)


def get_coherence_judge(context: EvaluationContext) -> CoherenceJudge:
    """The judge of an evaluation, trained when it is first needed."""
    judging, seed = context.texts.judging, context.options.seed
    read_bytes = min(READ_SHARE * context.options.limit, MOST_READ, MOST_PASSES * sum(map(len, judging)))

    def make(folder: Path) -> None:
        def report(share: float) -> None:
            context.report("training the judge of coherence", share)

        fit_coherence_judge(judging, read_bytes=read_bytes, seed=seed, report=report).save(folder)

    settings = [COMMONEST, WIDTH, REPEATED, FREQUENT, WINDOW, LEAST_WORDS, ROWS, LEARNING_RATE, WEIGHT_DECAY]
    return load_coherence_judge(
        context.store.entry("coherence", fingerprint(settings, read_bytes, seed, *judging), make)
    )


def measure_coherence_judge(judge: CoherenceJudge, texts: Sequence[bytes], *, seed: int) -> Measure:
    """What the judge sees in real texts: their gain; the floor is that of halves of different texts."""
    halves = [_halves(text) for text in texts]
    exchanged = [(first, halves[number - 1].second) for number, (first, _) in enumerate(halves)]
    real, floor = (np.stack(judge.gains_of_halves(each), 1) for each in (halves, exchanged))
    found = bootstrap_sums(real, _per_byte, seed=seed)
    return Measure(
        name="generate.coherence_itself.real_gain", value=found.value, low=found.low, high=found.high,
        floor=float(_per_byte(floor.sum(0, keepdims=True))[0]), n=int((real[:, 1] > 0).sum()), seconds=0.0,
        unit="nats/byte",
    )  # fmt: skip


class _Parts(NamedTuple):
    """The halves of a text."""

    first: bytes
    second: bytes


def _halves(text: bytes) -> _Parts:
    """A text parted at the first white space behind its middle, or with nothing in its second half."""
    middle = len(text) // 2
    place = next((place for place in range(middle, len(text)) if text[place : place + 1].isspace()), len(text))
    return _Parts(text[:place], text[place:])


def _per_byte(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gains [draws] of sums [draws, 2] of nats and of bytes; no number where there are no bytes."""
    return np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1), math.nan)
