"""What the tests share: the golden rows, short ways to make models, and strategies that draw them."""

from __future__ import annotations

from hypothesis import strategies as st

from kdbench_survey_metric.measured import Accuracy, Known, Measured, Outcome, Size

# Walawalkar, Shen and Savvides (2020) in the survey: size in % of the teacher, accuracy in %, score at alpha 0.5.
GOLDEN = {
    "62.84": (62.84, 69.12, 0.333),
    "35.36": (35.36, 67.04, 0.210),
    "15.25": (15.25, 62.87, 0.138),
    "3.74": (3.74, 43.11, 0.218),
}
GOLDEN_TEACHER = 71.76


def model(name: str, size: float | None, accuracy: float | None, **others: object) -> Measured:
    """A model whose size is in parameters and whose accuracy is a fraction."""
    return Measured(
        name=name,
        size=None if size is None else Size(size, "parameters"),
        accuracy=None if accuracy is None else Accuracy(accuracy, "fraction"),
        **others,  # type: ignore[arg-type]
    )


def percent(name: str, size: float, accuracy: float) -> Measured:
    return Measured(name=name, size=Size(size, "parameters"), accuracy=Accuracy(accuracy, "percent"))


def golden_students() -> list[Measured]:
    return [percent(name, size, accuracy) for name, (size, accuracy, _) in GOLDEN.items()]


def golden_teacher() -> Measured:
    return percent("ResNet44", 100.0, GOLDEN_TEACHER)


def value(outcome: Outcome) -> float:
    assert isinstance(outcome, Known), outcome
    return outcome.value


# Counts of parameters and of correct answers, so that what must differ differs by more than rounding.
sizes = st.integers(1, 10**7)
alphas = st.floats(0.0, 1.0)
inner_alphas = st.floats(0.01, 0.99)
fractions = st.integers(0, 1000).map(lambda k: k / 1000)
positive_fractions = st.integers(1, 1000).map(lambda k: k / 1000)
students = st.builds(model, st.just("S"), sizes, fractions)
teachers = st.builds(model, st.just("T"), sizes, positive_fractions)


@st.composite
def families(draw: st.DrawFn, smallest: int = 1) -> list[Measured]:
    """Students of distinct names; few values, so that ties and dominated ones are common."""
    pairs = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 10)), min_size=smallest, max_size=8))
    return [model(f"S{i}", size, correct / 10) for i, (size, correct) in enumerate(pairs)]
