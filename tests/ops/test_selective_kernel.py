"""pooled_sum, select_branches, selective_kernel: what autograd sees, layouts, bad input. (Numbers: tests/test_ops.py.)"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import attnkernels
from attnkernels import pooled_sum, reference, select_branches, selective_kernel

N, C, H, W = 2, 6, 5, 4


def branches(count=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, C, H, W, dtype=torch.float64, generator=generator).to(dtype) for _ in range(count)]


def network(count=2, dtype=torch.float64):
    torch.manual_seed(1)
    layer = torch.nn.Linear(C, count * C, dtype=dtype)
    return layer, lambda pooled: torch.tanh(layer(pooled)).view(-1, count, C)


def leaves(tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def gradients(function, inputs, layer, attention, **kwargs):
    y = function(inputs, attention, **kwargs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    wanted = [x for x in inputs if x.requires_grad]
    return torch.autograd.grad((y * weights).sum(), [*wanted, *layer.parameters()])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_gradients_of_branches_and_network(count):
    layer, attention = network(count)
    got = gradients(selective_kernel, leaves(branches(count)), layer, attention)
    want = gradients(reference.selective_kernel, leaves(branches(count)), layer, attention)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("wanted", [0b01, 0b10, 0b00])
def test_gradients_only_where_they_are_needed(wanted):
    layer, attention = network()
    inputs = [branch.requires_grad_(bool(wanted >> m & 1)) for m, branch in enumerate(branches())]
    again = [branch.requires_grad_(bool(wanted >> m & 1)) for m, branch in enumerate(branches())]
    got = gradients(selective_kernel, inputs, layer, attention)
    torch.testing.assert_close(got, gradients(reference.selective_kernel, again, layer, attention))


def test_first_and_second_derivatives_by_numbers():
    layer, attention = network()

    def call(weight, *inputs):
        logits = lambda pooled: torch.tanh(pooled @ weight.T).view(-1, 2, C)
        return selective_kernel(inputs, logits)

    inputs = (layer.weight.detach().requires_grad_(), *leaves(branches()))
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_the_pooled_sum_may_be_used_elsewhere_and_the_result_twice():
    layer, attention = network()

    def both(function, inputs):
        kept = []
        y = function(inputs, lambda pooled: attention(kept.append(pooled) or pooled))
        return (y * y.detach().cos()).sum() + y.square().sum() + kept[0].pow(3).sum()

    got, want = leaves(branches()), leaves(branches())
    both(selective_kernel, got).backward()
    both(reference.selective_kernel, want).backward()
    torch.testing.assert_close([x.grad for x in got], [x.grad for x in want])


def test_logits_that_do_not_depend_on_the_branches():
    inputs = leaves(branches())
    logits = torch.randn(N, 2, C, dtype=torch.float64)
    got = torch.autograd.grad(selective_kernel(inputs, lambda pooled: logits).square().sum(), inputs)
    want = torch.autograd.grad(reference.select_branches(inputs, logits).square().sum(), inputs)
    torch.testing.assert_close(got, want)


def test_only_the_pooled_sum_reaches_the_loss():
    inputs, kept = leaves(branches()), []
    selective_kernel(inputs, lambda pooled: torch.stack([kept.append(pooled) or pooled, pooled], 1))
    got = torch.autograd.grad(kept[0].square().sum(), inputs)
    want = torch.autograd.grad(reference.pooled_sum(inputs).square().sum(), inputs)
    torch.testing.assert_close(got, want)


def test_backward_twice_and_a_branch_given_twice():
    layer, attention = network()
    (x,) = leaves(branches()[:1])
    y = selective_kernel([x, x], attention)
    first = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y.square().sum(), x)[0])
    want = torch.autograd.grad(reference.selective_kernel([x, x], attention).square().sum(), x)
    torch.testing.assert_close(first, want)


def test_checkpointing_and_functional_gradients():
    layer, attention = network()
    a, b = leaves(branches())
    want = torch.autograd.grad(reference.selective_kernel([a, b], attention).square().sum(), [a, b])
    y = checkpoint(lambda a, b: selective_kernel([a, b], attention), a, b, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), [a, b]), want)
    loss = lambda a, b: selective_kernel([a, b], attention).square().sum()
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(a.detach(), b.detach()), want)


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_reference_cycle_keeps_the_branches(create_graph):
    gc.disable()
    try:
        inputs = leaves(branches())
        alive = [weakref.ref(x) for x in inputs]
        layer, attention = network()
        y = selective_kernel(inputs, attention)
        grads = torch.autograd.grad(y.sum(), inputs, create_graph=create_graph)
        del inputs, y, grads, attention, layer
        assert not any(ref() is not None for ref in alive)
    finally:
        gc.enable()


def test_saved_for_backward_are_the_branches_and_small_tensors():
    layer, attention = network()
    inputs, saved = leaves(branches()), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        selective_kernel(inputs, attention)
    large = [x for x in saved if x.numel() >= N * C * H * W]
    assert {x.data_ptr() for x in large} == {x.data_ptr() for x in inputs}


# ---- layouts


def test_a_stacked_tensor_and_its_views_are_the_same():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        joint = torch.randn(N, 3 * C, H, W).contiguous(memory_format=memory_format).requires_grad_()
        layer, attention = network(3, torch.float32)
        stacked = selective_kernel(joint.view(N, 3, C, H, W), attention)
        split = selective_kernel(joint.chunk(3, 1), attention)
        assert torch.equal(stacked, split)
        assert stacked.is_contiguous(memory_format=memory_format)
        (grad,) = torch.autograd.grad(stacked.square().sum(), joint)
        torch.testing.assert_close(grad, torch.autograd.grad(split.square().sum(), joint)[0])
        assert grad.is_contiguous(memory_format=memory_format)


def test_the_first_branch_decides_the_layout():
    a, b = branches()
    want = select_branches([a, b], torch.zeros(N, 2, C, dtype=a.dtype))
    for first, second in ((a.contiguous(memory_format=torch.channels_last), b), (a, b.mT.contiguous().mT)):
        y = select_branches([first, second], torch.zeros(N, 2, C, dtype=a.dtype))
        assert y.is_contiguous(memory_format=torch.channels_last) == (first is not a)
        torch.testing.assert_close(y, want)


def test_expanded_branches_and_gradients():
    base = torch.randn(1, C, 1, 1)
    inputs = [base.expand(N, C, H, W), torch.randn(N, C, H, W)]
    torch.testing.assert_close(pooled_sum(inputs), reference.pooled_sum(inputs))
    inputs = leaves(inputs)
    selective_kernel(inputs, lambda pooled: torch.stack([pooled, -pooled], 1)).sum().backward()
    assert all(x.grad.shape == (N, C, H, W) for x in inputs)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("samples", [1, 5])
def test_any_number_of_threads(threads, layout, samples):
    torch.manual_seed(0)
    inputs = leaves([torch.randn(samples, 40, 30, 31).contiguous(memory_format=layout) for _ in range(2)])
    attention = lambda pooled: torch.stack([pooled, pooled.flip(1)], 1)
    torch.set_num_threads(threads)
    y = selective_kernel(inputs, attention)
    got = torch.autograd.grad(y.square().sum(), inputs)
    wide = leaves([x.double() for x in inputs])
    want = reference.selective_kernel(wide, attention)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    want = torch.autograd.grad(want.square().sum(), wide)
    torch.testing.assert_close([g.double() for g in got], list(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sample_and_channel(bad):
    inputs = branches()
    inputs[0][1, 2, 0, 0] = bad
    attention = lambda pooled: torch.stack([pooled, -pooled], 1)
    got, want = selective_kernel(inputs, attention), reference.selective_kernel(inputs, attention)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got[0].isfinite().all()
    assert got[1, [0, 1, 3, 4, 5]].isfinite().all()


def test_large_logits_do_not_overflow():
    logits = torch.full((N, 2, C), 1e4, dtype=torch.float32)
    logits[:, 1] = -1e4
    inputs = branches(dtype=torch.float32)
    torch.testing.assert_close(select_branches(inputs, logits), inputs[0])


def test_autocast_takes_logits_of_another_dtype():
    inputs = branches(dtype=torch.bfloat16)
    logits = torch.randn(N, 2, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = select_branches(inputs, logits)
    assert torch.equal(y, select_branches(inputs, logits.bfloat16()))


# ---- bad input

GOOD = branches(dtype=torch.float32)
BAD = [
    ("none", None, TypeError, "branches: expected 2 to 8 tensors .*got None"),
    ("empty", [], ValueError, r"branches: expected 2 to 8 tensors \[N, C, H, W\].*got \[\]"),
    ("one", GOOD[:1], ValueError, "got list of 1"),
    ("nine", GOOD[:1] * 9, ValueError, "got list of 9"),
    ("no tensor", [GOOD[0], 1.0], TypeError, r"branches\[1\]: expected a tensor, got 1.0"),
    ("rank", [x[0] for x in GOOD], ValueError, r"branches\[0\]: expected a tensor \[N, C, H, W\], got 3 dimensions"),
    ("rank of a stack", GOOD[0], ValueError, r"or one tensor \[N, M, C, H, W\], got tensor of float32 \[2, 6, 5, 4\]"),
    ("stack of one", GOOD[0][:, None], ValueError, r"got tensor of float32 \[2, 1, 6, 5, 4\]"),
    ("shapes", [GOOD[0], GOOD[1][..., :3]], ValueError, r"branches\[1\]: expected shape \[2, 6, 5, 4\], got \[2, 6, 5, 3\]"),
    ("dtypes", [GOOD[0], GOOD[1].double()], TypeError, r"branches\[1\]: expected dtype torch.float32 as branches\[0\]"),
    ("devices", [GOOD[0], GOOD[1].to("meta")], ValueError, r"branches\[1\]: expected device cpu as branches\[0\], got meta"),
    ("integers", [x.int() for x in GOOD], TypeError, "expected float32, float64, float16 or bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_branches_are_named(value, kind, message):
    calls = {
        "pooled_sum": lambda: pooled_sum(value),
        "select_branches": lambda: select_branches(value, torch.zeros(N, 2, C)),
        "selective_kernel": lambda: selective_kernel(value, lambda pooled: torch.zeros(N, 2, C)),
    }
    for op, call in calls.items():
        with pytest.raises(kind, match=f"^{op}: {message}|^{op}: .*{message}"):
            call()


@pytest.mark.parametrize(
    ("logits", "kind", "message"),
    [
        (torch.zeros(N, 3, C), ValueError, r": expected shape \[2, 2, 6\], got \[2, 3, 6\]"),
        (torch.zeros(N, 2, C + 1), ValueError, r": expected shape \[2, 2, 6\], got \[2, 2, 7\]"),
        (torch.zeros(N, 2 * C), ValueError, r": expected shape \[2, 2, 6\], got \[2, 12\]"),
        (torch.zeros(N, 2, C).double(), TypeError, ": expected dtype torch.float32 as branches"),
        (None, TypeError, ": expected a tensor, got None"),
    ],
)
def test_bad_logits_are_named(logits, kind, message):
    with pytest.raises(kind, match=f"^select_branches: logits{message}"):
        select_branches(GOOD, logits)
    for function in (selective_kernel, lambda *args: selective_kernel(*args, backend="reference")):
        with pytest.raises(kind, match=f"^selective_kernel: the result of attention{message}"):
            function(GOOD, lambda pooled: logits)


def test_backends_by_name():
    best = "cpu" if "cpu" in attnkernels.available_backends() else "reference"
    assert attnkernels.backend_of("selective_kernel", GOOD, network()[1]) == best
    with pytest.raises(ValueError, match="pooled_sum: backend: expected one that can run here .*got 'triton'"):
        pooled_sum(GOOD, backend="triton")


def test_under_compile_the_plain_formula_is_taken():
    inputs, logits = branches(), torch.randn(N, 2, C, dtype=torch.float64)
    layer, attention = network()
    targets = []

    def look(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    for function, argument in ((select_branches, logits), (selective_kernel, attention)):
        compiled = torch.compile(function, fullgraph=True, backend=look)
        torch.testing.assert_close(compiled(inputs, argument), function(inputs, argument))
    assert targets
    assert not any("attnkernels" in target for target in targets)
