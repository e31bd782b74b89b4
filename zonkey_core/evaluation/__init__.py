"""The measurements behind `zonkey eval`: every figure beside its floor, its ceiling and its rivals.

Each part of the evaluation is a function that takes an `EvaluationContext` and yields `Outcome`s as they become
known; `zonkey_core.evaluation.tasks.runner` runs the parts. docs/evaluation.md defines every metric.
"""
