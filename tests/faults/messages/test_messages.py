"""Each public callable, given each typical mistake, says which argument is wrong, what it expected and what it got."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from faults.messages import functions, helpers, layers, patching
from faults.messages.table import Mistake, Subject

import attnkernels
from attnkernels import testing

LONGEST = 300
SUBJECTS = [*functions.SUBJECTS, *layers.SUBJECTS, *helpers.SUBJECTS, *patching.SUBJECTS]
TITLES = [subject.title or subject.name for subject in SUBJECTS]
ROWS = [
    pytest.param(subject, mistake, id=f"{title}-{mistake.argument}-{mistake.what}")
    for title, subject in zip(TITLES, SUBJECTS, strict=True)
    for mistake in subject.mistakes
]


def wrong(subject: Subject, mistake: Mistake) -> None:
    subject.call(**(subject.right() | {mistake.argument: mistake.value} | mistake.others))


@pytest.mark.parametrize("recorded", [True, False])  # without autograd, CPU operators are asked before the checks
@pytest.mark.parametrize(("subject", "mistake"), ROWS)
def test_message(subject, mistake, recorded):
    with torch.set_grad_enabled(recorded), pytest.raises(mistake.error) as caught:
        wrong(subject, mistake)
    assert type(caught.value) is mistake.error
    message = str(caught.value)
    assert len(message) <= LONGEST
    assert "\n" not in message
    assert message.startswith(f"{mistake.by or subject.name}: ")
    where, found, got = message.partition(", got ")
    assert found
    named, found, expected = where.partition(": expected ")
    assert found
    assert mistake.argument in named
    assert mistake.expected in expected
    assert mistake.got in got


@pytest.mark.parametrize("subject", SUBJECTS, ids=TITLES)
def test_right_arguments_after_wrong_ones(subject):
    subject.call(**subject.right())
    for mistake in subject.mistakes:
        with pytest.raises(mistake.error):
            wrong(subject, mistake)
    subject.call(**subject.right())


def test_the_table_is_long():
    assert len(ROWS) >= 200


@pytest.mark.parametrize("subject", SUBJECTS, ids=TITLES)
def test_every_parameter_has_rows(subject):
    parameters = set(inspect.signature(subject.signature or subject.call).parameters)
    named = {mistake.argument for mistake in subject.mistakes}
    assert named | set(subject.unchecked) == parameters
    assert not named & set(subject.unchecked)


def test_every_callable_has_rows():
    """Classes are called too: layers are made, and then called on an input."""
    calls = {subject.title or subject.name for subject in SUBJECTS}
    layers_called = [f"{name}.forward" for name in attnkernels.layers.__all__]
    public = {name for name in attnkernels.__all__ if callable(getattr(attnkernels, name))}
    of_tests = {name for name in testing.__all__ if callable(getattr(testing, name)) and not _is_alias(name)}
    assert public | set(attnkernels.ops.__all__) <= calls
    assert {f"reference.{name}" for name in attnkernels.reference.__all__} <= calls
    assert {*attnkernels.layers.__all__, *layers_called} <= calls
    assert of_tests == (calls & of_tests) | set(helpers.WITHOUT_ROWS)
    assert not calls & set(helpers.WITHOUT_ROWS)


def _is_alias(name: str) -> bool:
    """Whether it is the name of a type with parameters, as `Mapping[str, int]`."""
    return isinstance(getattr(testing, name), types.GenericAlias)
