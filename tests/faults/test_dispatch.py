"""Dispatchers on classes: other libraries' wrappers, the last patched instance, several threads."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import threading

import pytest
import torch
from patching.conftest import tiny_seresnet
from timm.layers.squeeze_excite import SEModule
from timm.models.resnet import BasicBlock

import attnkernels
from attnkernels.patching import _dispatch

FUSED = 5  # calls of the op that the model makes


class Wrapper:
    """What instrumentation libraries do to a class: wrap its forward, count calls, restore what was there."""

    def __init__(self, cls, wraps=True):
        self.cls, self.before, self.seen = cls, cls.__dict__["forward"], 0

        def forward(module, input):
            self.seen += 1
            return self.before(module, input)

        cls.forward = functools.wraps(self.before)(forward) if wraps else forward

    def restore(self):
        self.cls.forward = self.before


@pytest.fixture
def wrapped(own_forwards):
    wrappers = []

    def wrap(wraps=True):
        wrappers.append(Wrapper(SEModule, wraps))
        return wrappers[-1]

    own = SEModule.__dict__["forward"]
    yield wrap
    SEModule.forward = own


@pytest.mark.parametrize(("wraps", "reason"), [(True, "wrapped by something else"), (False, "not the one this was")])
def test_a_wrapper_before_patch_is_left_alone(model, x, calls, wrapped, wraps, reason):
    wrapper = wrapped(wraps)
    report = attnkernels.patch(model)
    assert not report.replaced
    assert {reason in record.reason for record in report.skipped} == {True}
    model(x)
    assert (wrapper.seen, len(calls)) == (FUSED, 0)
    wrapper.restore()
    assert len(attnkernels.patch(model).replaced) == 2 * FUSED
    model(x)
    assert (wrapper.seen, len(calls)) == (FUSED, FUSED)


@pytest.mark.parametrize("wraps", [True, False])
def test_a_wrapper_after_patch_sees_every_call(model, x, calls, wrapped, wraps):
    own, expected = SEModule.forward, model(x)
    attnkernels.patch(model)
    wrapper = wrapped(wraps)
    for recorded in (False, False, True):  # after the first time by the modules' guards, which call the operator
        with torch.set_grad_enabled(recorded):
            torch.testing.assert_close(model(x), expected)
    assert (wrapper.seen, len(calls)) == (3 * FUSED, FUSED)
    attnkernels.unpatch(model)
    calls.clear()
    assert torch.equal(model(x), expected)
    assert (wrapper.seen, len(calls)) == (4 * FUSED, 0)
    if wraps:  # the dispatcher below the wrapper serves again; blocks would pass the wrapper by, and are left alone
        report = attnkernels.patch(model)
        assert {record.original for record in report.replaced} == {"timm.layers.squeeze_excite.SEModule"}
        assert {record.original for record in report.skipped} == {"timm.models.resnet.BasicBlock"}
        model(x)
        assert (wrapper.seen, len(calls)) == (5 * FUSED, FUSED)
        attnkernels.unpatch(model)
    wrapper.restore()
    attnkernels.patch(model)
    attnkernels.unpatch(model)
    assert SEModule.forward is own


def test_a_library_that_restores_what_it_found_before_patch(model, x, calls, own_forwards):
    own = SEModule.forward
    attnkernels.patch(model)
    SEModule.forward = own  # by one that had saved it
    model(x)
    assert not any("residual" not in call for call in calls)
    calls.clear()
    attnkernels.patch(model)
    model(x)
    assert len(calls) == FUSED
    attnkernels.unpatch(model)
    assert SEModule.forward is own


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_classes_change_back_with_the_last_patched_instance(se, feature, calls, own_forwards, duplicate):
    own = SEModule.__dict__["forward"]
    attnkernels.patch(se)
    other = duplicate(se)
    attnkernels.unpatch(se)
    assert SEModule.forward is not own
    other(feature)
    assert len(calls) == 1
    attnkernels.unpatch(other)
    assert SEModule.__dict__["forward"] is own
    assert _dispatch.FLAG not in se.__dict__


def test_classes_of_models_that_are_gone_change_back_too(model, se, own_forwards):
    own = SEModule.forward, BasicBlock.forward
    attnkernels.patch(model)
    attnkernels.patch(se)
    names = [name for name, _ in model.named_modules()]
    assert "layer1.0.se" in names
    model.__dict__.clear()
    gc.collect()
    attnkernels.unpatch(se)
    assert (SEModule.forward, BasicBlock.forward) == own


def test_threads_patch_and_unpatch_at_once_while_others_call(x):
    torch.manual_seed(0)
    models = [tiny_seresnet().eval() for _ in range(3)]
    with torch.no_grad():
        expected = [model(x) for model in models]
    errors, stop = [], threading.Event()

    def patching(model):
        for i in range(60):
            attnkernels.patch(model, backend=("auto", "reference")[i % 2])
            attnkernels.unpatch(model)

    def calling(model, wanted):
        while not stop.is_set():
            with torch.no_grad():
                torch.testing.assert_close(model(x), wanted)

    def reported(function, *arguments):
        def run():
            try:
                function(*arguments)
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=run)

    callers = [reported(calling, *pair) for pair in zip(models, expected, strict=True)]
    patchers = [reported(patching, model) for model in (models[0], models[1], models[0])]
    for thread in callers + patchers:
        thread.start()
    for thread in patchers:
        thread.join()
    stop.set()
    for thread in callers:
        thread.join()
    assert not errors
    names = [name for model in models for module in model.modules() for name in module.__dict__]
    assert not [name for name in names if name.startswith("_attnkernels")]
