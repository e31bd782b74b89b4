"""What a measurement says, as JSON."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from zonkey_core.evaluation.results import LeftOut, Measure, Outcome, as_json

values = st.floats(allow_nan=False, allow_infinity=False)
measures = st.builds(
    Measure, name=st.text(min_size=1), value=values, low=st.none() | values, floor=st.none() | values,
    rivals=st.dictionaries(st.text(), values, max_size=3), n=st.integers(0, 10**6), seconds=values,
    better=st.sampled_from(["higher", "lower", "neither"]),
)


def test_the_object_is_keyed_by_metric() -> None:
    measure = Measure(name="segment.word_f1", value=0.5, low=0.4, high=0.6, floor=0.25, n=7, seconds=1.5)
    left_out = LeftOut(name="segment.sentence_f1", reason="no gold")
    assert as_json([measure, left_out]) == {
        "segment.word_f1": {
            "value": 0.5, "low": 0.4, "high": 0.6, "floor": 0.25, "ceiling": None, "rivals": {}, "n": 7,
            "seconds": 1.5, "better": "higher", "unit": "",
        },
        "left_out": {"segment.sentence_f1": "no gold"},
    }


def test_nothing_left_out_leaves_no_trace() -> None:
    assert as_json([]) == {}
    assert list(as_json([Measure(name="speed.train", value=1.0, n=1, seconds=0.0)])) == ["speed.train"]


@given(st.lists(measures, max_size=5, unique_by=lambda measure: measure.name))
def test_every_measure_can_be_read_back_from_json(outcomes: list[Measure]) -> None:
    read = msgspec.json.decode(msgspec.json.encode(as_json(outcomes)))
    assert [msgspec.convert({"type": "measure", "name": name, **fields}, Measure) for name, fields in read.items()] == (
        outcomes
    )


@given(st.lists(measures | st.builds(LeftOut, name=st.text(), reason=st.text()), max_size=5))
def test_outcomes_survive_being_kept(outcomes: list[Outcome]) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(outcomes), type=list[Outcome]) == outcomes
