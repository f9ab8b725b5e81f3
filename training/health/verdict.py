"""A run's health in lines: what is wrong, and its figures beside the expected ones."""

from __future__ import annotations

from training.health.causes import Finding, diagnose, is_early
from training.health.course import Course
from training.health.expected import Comparison, compare, expectation_of
from training.health.facts import Facts

_LOSS_DIGITS, _SCORE_DIGITS = 2, 4


def verdict(course: Course, facts: Facts) -> list[str]:
    """Lines for people: where the run is, what is wrong, what was to be expected.

    Args:
        course: with at least one reading.
    """
    loss, blind = course.now("loss"), facts.blind_loss
    where = f"step {course.step:,}, epoch {course.epoch:.2f}"
    if loss is not None:
        where += f": loss {loss:.4g}"
        where += f"; a network that knows nobody has {blind:.4g}" if blind else ""
    expected, source = expectation_of(facts)
    lines = [where, *summary(diagnose(course, facts), early=is_early(course, facts))]
    lines.append(f"expected   {source}")
    if expected:
        lines += [as_line(one) for one in compare(course, expected)]
    return lines


def summary(findings: list[Finding], *, early: bool) -> list[str]:
    """What was found, or that nothing was."""
    if findings:
        return [f"unhealthy  {finding}" for finding in findings]
    if early:
        return ["early      nothing wrong is seen so far; whether it learns shows later"]
    return ["healthy    nothing wrong is seen"]


def as_line(one: Comparison) -> str:
    """A comparison as a line."""
    digits = _LOSS_DIGITS if one.what == "loss" else _SCORE_DIGITS
    found = "     ?" if one.found is None else f"{one.found:.{digits}f}"
    return (
        f"epoch {one.epoch:5.2f}  {one.what:<10} {found}  "
        f"expected {one.low:.{digits}f} to {one.high:.{digits}f}: {one.verdict}"
    )
