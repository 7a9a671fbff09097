"""What is saved for the backward: what the first derivative needs, and no more than the formula saves."""

from __future__ import annotations

import contextlib

import pytest
import torch
from faults.wiring import independent, weights_like, wired

import attnkernels
from attnkernels import testing


def case_named(op, name):
    return next(case for case in testing.CASES[op] if case.name == name)


def modified_in_between(case, index, backend, **options):
    """Gradients, with 1 added in place to one of the inputs between the forward and the backward."""
    made: list[torch.Tensor] = []

    def remembered(leaves):
        made[:] = [x + 0 for x in leaves]
        return made

    leaves, call = wired(case, torch.float64, remembered)
    output = call(leaves, backend)
    with torch.no_grad():
        made[index].add_(1)
    return torch.autograd.grad(output, leaves, weights_like(output, 1), **options)


FREE = [  # inputs that the formula's own backward does not read
    ("squeeze_excite", "residual_relu", 2), ("squeeze_excite", "residual_relu", 4),
    ("squeeze_excite", "residual_relu", 5), ("squeeze_excite", "residual", 5), ("squeeze_excite", "plain", 2),
    ("squeeze_excite", "plain", 4), ("squeeze_excite", "single_layer", 2), ("select_branches", "plain", 2),
    ("pooled_sum", "plain", 0), ("pooled_sum", "plain", 1),
]  # fmt: skip


@pytest.mark.parametrize(("op", "name", "index"), FREE)
def test_inputs_that_the_first_derivative_does_not_need_may_change(op, name, index):
    case = case_named(op, name)
    got = modified_in_between(case, index, "auto")
    want = modified_in_between(case, index, "formula")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("op", "name", "index"), [row for row in FREE if row[0] != "pooled_sum" and row[2] != 5])
def test_a_second_derivative_raises_where_they_changed(op, name, index):
    if "cpu" not in attnkernels.available_backends():
        pytest.skip("the formula has them")
    with pytest.raises(RuntimeError, match=rf"{op}: .*modified by an inplace operation: it is at version \d"):
        modified_in_between(case_named(op, name), index, "auto", create_graph=True)


@pytest.mark.parametrize("name", ["residual", "residual_relu"])
def test_a_changed_residual_does_not_matter_to_the_second_derivative(name):
    case = case_named("squeeze_excite", name)
    got = modified_in_between(case, 5, "auto", create_graph=True)
    want = modified_in_between(case, 5, "formula", create_graph=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("op", "index"), [("squeeze_excite", 0), ("squeeze_excite", 1), ("squeeze_excite", 3),
                                           ("criss_cross_attention", 0), ("criss_cross_affinity", 1),
                                           ("criss_cross_aggregate", 0), ("select_branches", 0)])  # fmt: skip
def test_inputs_that_it_needs_may_not_change(op, index):
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        modified_in_between(case_named(op, "plain"), index, "auto")


def test_a_step_on_a_bias_between_forward_and_backward():
    layer = attnkernels.layers.SqueezeExcite(8)
    y = layer(torch.randn(2, 8, 4, 4, requires_grad=True)).sum()
    with torch.no_grad():
        layer.fc1.bias.sub_(0.1)
        layer.fc2.bias.sub_(0.1)
    y.backward()
    assert layer.fc1.bias.grad is not None


def test_a_bias_made_in_inference_mode():
    x, w = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(8, 8)
    with torch.inference_mode():
        bias = torch.randn(8)
    functions = attnkernels.squeeze_excite, attnkernels.reference.squeeze_excite
    got, want = (torch.autograd.grad(function(x, w, None, w, bias).sum(), x)[0] for function in functions)
    torch.testing.assert_close(got, want)


@contextlib.contextmanager
def saved_bytes():
    """The bytes of the storages that are saved within."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # kept, so that no other gets its address
        return tensor

    counted = [0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted
    counted[0] = sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    "name", ["seresnet18", "seresnet50", "legacy_seresnet18", "efficientnet_b0", "mobilenetv3_small_100",
             "skresnet18", "resnest14d", "regnety_002"],
)  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_patched_networks_save_no_more_than_the_original(name, layout):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).train().to(memory_format=layout)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=layout)
    with saved_bytes() as original:
        model(x)
    assert attnkernels.patch(model).replaced
    with saved_bytes() as patched:
        model(x)
    assert patched[0] <= original[0]


def test_nothing_of_a_call_outlives_its_graph():
    import weakref

    leaves, call = wired(case_named("squeeze_excite", "residual_relu"), torch.float32, independent)
    output = call(leaves, "auto")
    node = weakref.ref(output.grad_fn)
    bias = weakref.ref(leaves[2])
    del output, leaves, call
    assert node() is None
    assert bias() is None
