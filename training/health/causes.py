"""The usual causes of a run that does not learn, found in its own metrics.

Each is known from runs that were broken on purpose: see benchmarks/sick_runs.py, docs/healthy.md.
A finding says what was seen, what that usually means, and what to change. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from training.health.course import Course
from training.health.facts import Facts

# Before so much of a run has passed, a high loss is that of a beginning.
_EARLY_EPOCHS, _EARLY_STEPS, _LATE_STEPS = 2, 100, 5_000
_SKIPPED, _MANY_SKIPPED = 0.9, 0.1  # shares of the newest steps
_ZERO = 1e-3  # a loss
_BY_HEART = 0.02  # of the blind loss
_RISEN = 1.2  # over the loss of random embeddings, or over the first where that is not known
_RISEN_AGAIN = 1.5  # over the lowest so far
_BLIND = 0.93  # of the blind loss: above it nothing has been learned
_LEARNED = 0.8  # of the blind loss: below it the training images are told apart
_UNMOVED = 0.7  # the gradient's norm, over that of the beginning: it falls by half and more
_FLAT = 0.1  # accuracy that a set of pairs has gained
_GOOD, _LOW, _CHANCE = 0.9, 0.7, 0.53  # accuracies of pairs, of which half are genuine


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run.

    Attributes:
        cause: its name, a heading of docs/healthy.md.
        seen: in the metrics.
        meaning: what usually is behind it.
        remedy: what to look at or to change.
    """

    cause: str
    seen: str
    meaning: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.seen}. {self.meaning}. {self.remedy}"


def diagnose(course: Course, facts: Facts) -> list[Finding]:
    """What is wrong with a run, the likeliest cause first; empty where nothing is seen.

    The first cause that holds explains the others away, but for skipped steps, which are found
    beside them.
    """
    found = list(_skipped(course, facts))
    if any(finding.cause == "every step is skipped" for finding in found):
        return found
    for look in _LOOKS:
        finding = look(course, facts)
        if finding:
            return [*found, finding]
    return found


def is_early(course: Course, facts: Facts) -> bool:
    """Whether it is too soon to say that a run does not learn."""
    past = course.epoch - facts.warmup_epochs
    steps = past * facts.steps_per_epoch
    return steps < _EARLY_STEPS or (past < _EARLY_EPOCHS and steps < _LATE_STEPS)


def _skipped(course: Course, facts: Facts) -> Iterator[Finding]:
    recent = course.readings[-max(1, len(course.readings) // 8) :]
    before = course.readings[-len(recent) - 1 : -len(recent)]
    if not recent:
        return
    steps = recent[-1]["step"] - (before[-1]["step"] if before else 0)
    share = sum(line.get("skipped_steps", 0) for line in recent) / steps
    if share < _MANY_SKIPPED:
        return
    scale = recent[-1].get("loss_scale", 1.0)
    if scale > 1 and course.step < _EARLY_STEPS:
        return  # float16 looks for its scale
    forward = sum(line.get("nonfinite_losses", 0) for line in recent) > 0
    where = "the loss itself is not finite" if forward else "the loss is finite, its gradient not"
    seen = f"{share:.0%} of the last {steps} steps were not finite and changed nothing; {where}"
    yield Finding(
        cause="every step is skipped" if share >= _SKIPPED else "many steps are skipped",
        seen=seen,
        meaning="An overflow in the step's number format, a learning rate far too high, or weights "
        "with NaN or infinity at the start",
        remedy="Try step.precision=bf16 or fp32, then a tenth of "
        f"optim.lr={facts.settings['optim.lr']:g}; without run.init_from once, if it is set",
    )


def _no_negatives(course: Course, facts: Facts) -> Finding | None:
    losses = course.values("loss")
    if not losses or max(losses[:3]) > _ZERO:
        return None
    if facts.classes > 1:
        seen = f"the loss is 0 from the start, with {facts.classes:,} classes in the head"
    else:
        seen = "the loss is 0 from the start, and the head has one class"
    return Finding(
        cause="one class",
        seen=seen,
        meaning="All images have one label, or no class but the batch's own takes part in a step, "
        "so that nothing can be mistaken",
        remedy="Look at the labels (python tools/rec2idx.py FILE.rec says how many identities "
        "there are), and at head.sample_rate, head.sample_count and data.images_per_identity",
    )


def _rate_too_high(course: Course, facts: Facts) -> Finding | None:
    losses = course.values("loss")
    if len(losses) < 2:
        return None
    start, worst = facts.start_loss or losses[0], max(losses)
    if worst > _RISEN * start:
        seen = f"the loss rose to {worst:.4g}, above {start:.4g}, that of a network that guesses"
    else:
        if facts.settings["head.sample_rate_from"] or facts.warmup_epochs:
            return None  # more classes, or a growing margin, raise it, too
        lowest, rise = losses[0], (0.0, 0.0, 0.0)
        for loss in losses:
            lowest = min(lowest, loss)
            if loss > _RISEN_AGAIN * lowest:
                rise = max(rise, (loss - lowest, lowest, loss))
        if rise[0] < 0.1 * start:
            return None
        seen = f"the loss rose again, from {rise[1]:.4g} to {rise[2]:.4g}"
    return Finding(
        cause="rate too high",
        seen=seen,
        meaning="Steps are too long for the place where they are taken; even where the loss comes "
        "down later, the network stays worse than it could be",
        remedy=f"Try a third of optim.lr={facts.settings['optim.lr']:g}"
        f"{_centers_rate(facts)}, or a longer "
        f"optim.warmup_epochs={facts.settings['optim.warmup_epochs']:g}",
    )


def _network_unmoved(course: Course, facts: Facts) -> Finding | None:
    if is_early(course, facts) or _gradient_falls(course):
        return None
    if not (_is_flat(course) if _accuracy(course) else _is_blind(course, facts)):
        return None
    rate = course.now("lr")
    frozen = facts.settings["optim.freeze_epochs"] or facts.settings["optim.freeze"]
    share = course.now("gradient_norm") / course.values("gradient_norm")[0]
    return Finding(
        cause="the network does not move",
        seen=f"the gradient's norm is still {share:.0%} of that of the beginning"
        + (f", at a learning rate of {rate:.2g}" if rate is not None else ""),
        meaning="A rate that is far too low, or a network that is frozen: a loss that falls all "
        "the same is that of the centers",
        remedy=f"Try ten times optim.lr={facts.settings['optim.lr']:g}"
        + (", and look at optim.freeze and optim.freeze_epochs" if frozen else ""),
    )


def _stuck(course: Course, facts: Facts) -> Finding | None:
    loss, blind = course.now("loss"), facts.blind_loss
    if is_early(course, facts) or not _is_blind(course, facts):
        return None
    seen = f"the loss is {loss:.4g}; whoever knows nobody has {blind:.4g}"
    accuracy = _accuracy(course)
    if accuracy and accuracy[1] - accuracy[0] >= _FLAT:
        return Finding(
            cause="the centers do not move",
            seen=f"{seen}. The network learns: accuracy went from {accuracy[0]:.3f} to "
            f"{accuracy[1]:.3f}",
            meaning="The centers stay where they began, so that images cannot come near them",
            remedy=f"Look at the centers' rate{_centers_rate(facts)}, at head.weight_decay, and at "
            f"head.sample_rate={facts.settings['head.sample_rate']:g}",
        )
    return Finding(
        cause="labels do not fit the images",
        seen=seen + (f", and accuracy stays at {accuracy[1]:.3f}" if accuracy else ""),
        meaning="Labels were shuffled against the images, name something that faces do not show, "
        "or are of another file; else margin and scale are too large to begin with",
        remedy="Look at what python tools/unpack_rec.py FILE.rec OUT makes: each folder is one "
        "person. If they are right, try head.margin_warmup_epochs=2 or a smaller scale",
    )


def _not_verified(course: Course, facts: Facts) -> Finding | None:
    loss, blind = course.now("loss"), facts.blind_loss
    accuracy = _accuracy(course)
    if loss is None or not blind or not accuracy or is_early(course, facts):
        return None
    if loss > _LEARNED * blind or not _is_flat(course):
        return None
    seen = (
        f"the loss has fallen to {loss:.4g} of {blind:.4g}, but accuracy went from "
        f"{accuracy[0]:.3f} to {accuracy[1]:.3f}"
    )
    if accuracy[1] <= _CHANCE:
        return Finding(
            cause="pairs are wrong",
            seen=seen,
            meaning="The verification set calls pairs the same that are not: even an untrained "
            "network is better than chance",
            remedy="Make the .bin again, and look at its pairs: python tools/evaluate.py RUN "
            "--sets THE.bin -o report shows the hardest ones",
        )
    return Finding(
        cause="verified on other images than it learns",
        seen=seen,
        meaning="The verification images come to the network otherwise than those of the training "
        "set: cropped or aligned otherwise, colors in another order, pixels in another range",
        remedy="Put both side by side: python tools/preview.py CONFIG -o grid.png, and the pairs "
        "in the report of python tools/evaluate.py RUN --sets THE.bin -o report",
    )


def _by_heart(course: Course, facts: Facts) -> Finding | None:
    loss, blind = course.now("loss"), facts.blind_loss
    accuracy = _accuracy(course)
    if loss is None or not blind or not accuracy or accuracy[1] >= _GOOD:
        return None
    if loss > _BY_HEART * blind:
        return None
    return Finding(
        cause="learned by heart",
        seen=f"the loss is {loss:.2g}, near 0, and accuracy on other people {accuracy[1]:.3f}",
        meaning="The training images are known one by one: they are too few for so many epochs, "
        "or copies of one another",
        remedy="More people; else more of data.augment, fewer run.epochs, or a start from a "
        "trained network with run.init_from",
    )


def _bad_start(course: Course, facts: Facts) -> Finding | None:
    first = [found[0] for found in course.scores.values() if found[0][0] == 0]
    low = [value for _, figure, value in first if figure == "accuracy" and value <= _LOW]
    if not facts.settings["run.init_from"] or len(low) < len(first) or not low:
        return None
    return Finding(
        cause="the start knows nobody",
        seen=f"run.init_from={facts.settings['run.init_from']}, and before the first step accuracy "
        f"was {max(low):.3f}",
        meaning="The weights are of a network that takes its images otherwise (normalization, "
        "order of colors, crop), or few of them fitted",
        remedy="Read the lines that begin with 'start' in run.log, and judge the file itself: "
        "python tools/evaluate.py FILE --sets THE.bin -o report",
    )


# In order: a cause before those that it would be taken for.
_LOOKS: tuple[Callable[[Course, Facts], Finding | None], ...] = (
    _no_negatives,
    _rate_too_high,
    _bad_start,
    _network_unmoved,
    _stuck,
    _by_heart,
    _not_verified,
)


def _is_blind(course: Course, facts: Facts) -> bool:
    """Whether the loss is still that of a network that knows nobody."""
    loss, blind = course.now("loss"), facts.blind_loss
    return loss is not None and bool(blind) and loss >= _BLIND * blind


def _gradient_falls(course: Course) -> bool:
    """Whether it has, or is not known."""
    norms, now = course.values("gradient_norm"), course.now("gradient_norm")
    return now is None or norms[0] <= 0 or now < _UNMOVED * norms[0]


def _accuracy(course: Course) -> tuple[float, float] | None:
    """First and last of the set of pairs that gained most; None without one that has both."""
    curves = [
        (found[0][2], found[-1][2])
        for found in course.scores.values()
        if found[-1][1] == "accuracy" and len(found) > 1
    ]
    return max(curves, key=lambda curve: curve[1] - curve[0], default=None)


def _is_flat(course: Course) -> bool:
    """Whether the sets of pairs, if there are any, show that nothing is learned."""
    accuracy = _accuracy(course)
    return bool(accuracy) and accuracy[1] <= _LOW and accuracy[1] - accuracy[0] < _FLAT


def _centers_rate(facts: Facts) -> str:
    rate = facts.settings["head.lr"]
    return "" if rate is None else f", head.lr={rate:g}"
