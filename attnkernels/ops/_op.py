"""What an op is: one record, from which a public function, its reference, `backend_of` and `info` have what they need.

`Op` answers a call: it checks the arguments, chooses a backend and runs the kernels or the formula. `FusedOp` is the
usual one, of one forward and one backward operator: their schemas say what is saved, what is differentiated and in
which order the arguments stand. An op that autograd has to see otherwise overrides `Op.run`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .. import backends
from ._autocast import autocasts
from ._autograd import Unsaved, differentiates_formula, distinct, needs_bits, needs_grad, reference_backward
from ._registry import Operator

Values = tuple[Any, ...]
_grad_enabled = torch.is_grad_enabled


class AsReference(NamedTuple):
    """A `backend=` with which a public function computes its formula, as the reference of the same name."""

    backend: str


def as_given(inputs: Values) -> Values:
    """Leave the inputs of a call as they are."""
    return inputs


@dataclass(kw_only=True, eq=False)
class Op:
    """All that the library knows of a public function. Inputs are its tensors, options its other arguments.

    Attributes:
        name: the public function's.
        inputs, options: the names of the arguments, in the order in which all functions below take them.
        formula: the op in plain PyTorch, of inputs and options that have been checked.
        check: raises where the op does not take these inputs and options.
        example: `(args, kwargs)` of a small call on a device.
        leader: which of the tensors decides the device and the layout.
        tensors: the tensors among the inputs, where these are not tensors themselves: what is neither is left to
            `check`.
        autocast: the inputs as autocast would have them; asked only where it is on.
        callables: the options that may be callables, of which kernels know nothing.
        when_compiled: why "auto" takes the formula under torch.compile; empty where it does not.
        on_gpu: the order in which "auto" prefers the backends of a GPU, by the leading tensor.
        refusals: what `run` raises of arguments that it does not take, so that they are considered one by one.
        function: the public function.
    """

    name: str = ""
    inputs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    formula: Callable[..., Tensor]
    check: Callable[..., None]
    example: Callable[[str], tuple[tuple, dict]]
    leader: int = 0
    tensors: Callable[[Values], Values] | None = None
    autocast: Callable[[Values], Values] = as_given
    callables: tuple[str, ...] = ()
    when_compiled: str = ""
    on_gpu: Callable[[Tensor], tuple[str, ...]] = backends.gpu_backends
    refusals: tuple[type[Exception], ...] = (RuntimeError, LookupError, TypeError)
    function: Callable[..., Tensor] = field(init=False)

    def public(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Decorates the public function, which calls the op."""
        self.function = function
        backends.OPS[self.name] = self
        return function

    def run(self, backend: str, inputs: Values, options: Values) -> Any:
        """The op on a backend of kernels, recorded where autograd wants it."""
        raise NotImplementedError

    def __call__(self, backend: str, inputs: Values, options: Values = ()) -> Any:
        """The body of the public function: the op on the backend that is chosen for this call."""
        tensors = inputs if self.tensors is None else self.tensors(inputs)
        if chosen := backends.plain_backend(tensors[self.leader], backend, tensors, self.on_gpu):
            try:
                if chosen == "triton":  # the operators in C++ check as much
                    self.check(*inputs, *options)
                return self.run(chosen, inputs, options)
            except self.refusals:
                pass  # callables, or wrong arguments: what follows names them
        if isinstance(backend, AsReference):
            return self.as_reference(backend.backend, tensors, inputs, options)
        if backends.overridden(tensors):
            return self.hand_over(tensors, backend, inputs, options)
        leader = tensors[self.leader]
        if isinstance(leader, Tensor) and autocasts(leader):
            inputs = self.autocast(inputs)
            tensors = inputs if self.tensors is None else self.tensors(inputs)
        self.check(*inputs, *options)
        chosen = backends.choose(
            self.name, tensors[self.leader], backend, tensors,
            only_formula=self.only_formula(inputs, options), when_compiled=self.when_compiled, on_gpu=self.on_gpu,
        )  # fmt: skip
        return self.formula(*inputs, *options) if chosen == "reference" else self.run(chosen, inputs, options)

    def only_formula(self, inputs: Values, options: Values) -> str:
        """Under which condition, met by this call, nothing but the formula computes it; empty where kernels can."""
        for name, value in zip(self.options, options, strict=True):
            if name in self.callables and callable(value):
                return f"where {' or '.join(self.callables)} is a callable"
        return ""

    def as_reference(self, backend: str, tensors: Values, inputs: Values, options: Values) -> Any:
        """The formula. Tracers' proxies and subclasses answer for themselves, autocast casts inside the formula."""
        backends.checked(backend, f"{self.name}: backend")
        if self.checks_reference(tensors):
            self.check(*inputs, *options)
        return self.formula(*inputs, *options)

    def checks_reference(self, tensors: Values) -> bool:
        """Whether the reference is to check its arguments as the op does."""
        return not backends.overridden(tensors) and not any(isinstance(x, Tensor) and autocasts(x) for x in tensors)

    def hand_over(self, tensors: Values, backend: str, inputs: Values, options: Values) -> Any:
        """The call as one of the arguments answers it, by `__torch_function__`."""
        named = dict(zip((*self.inputs, *self.options), (*inputs, *options), strict=True))
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = inspect.signature(self.function).parameters.values()
        args = [named.pop(parameter.name) for parameter in parameters if parameter.kind is positional]
        return handle_torch_function(self.function, tensors, *args, **named, backend=backend)

    def reference(self) -> Callable[..., Tensor]:
        """The pure-PyTorch twin of the public function."""
        function = self.function

        @functools.wraps(function)
        def reference(*args: Any, backend: str = "reference", **kwargs: Any) -> Tensor:
            return function(*args, backend=AsReference(backend), **kwargs)

        signature = inspect.signature(function)
        parameters = [
            p.replace(default="reference") if p.name == "backend" else p for p in signature.parameters.values()
        ]
        reference.__signature__ = signature.replace(parameters=parameters)
        reference.__module__ = "attnkernels.reference"
        reference.__doc__ = (
            f"The pure-PyTorch twin of `attnkernels.{self.name}`; `backend` is a name of one, and ignored."
        )
        return reference


class Variant(NamedTuple):
    """A FusedOp with certain options.

    Attributes:
        options: these options.
        integers: those that stand for them in the schemas.
        saved: what is saved for the backward, by its place among the inputs, the results and, last, None.
        passed_through: the inputs whose gradient is that of the result, in the bits of `needs`.
    """

    options: Values
    integers: tuple[int, ...]
    saved: tuple[int, ...]
    passed_through: int


@dataclass(kw_only=True, eq=False)
class FusedOp(Op):
    """An op of one forward operator and one backward operator, which has the names of its op, inputs and options.

    The forward takes the inputs and then, as integers, the options; its first result is the op's. The backward takes
    what its arguments are named after: gradient of the result (`grad_...`), inputs, results, options, and `needs`, in
    which bit i stands for input i. Its results are `grad_` with the name of an input; those that `needs` does not ask
    for are empty, [0].

    Attributes:
        forward, backward: the operators.
        choices: by an option's name its values, in the order of the integers that stand for them in the schemas.
        unsaved: the inputs whose values no kernel of the backward reads (see `Unsaved`).
        keeps_output: whether the backward reads the result itself, by the options; it does if it takes it.
        passed_through: the inputs whose gradient is that of the result, as in `needs`, by the options.
        formula_backward: the gradients by the formula, of the inputs and the result as far as they are known, the
            gradient of the result, and the options; None for differentiating the formula.
    """

    forward: Operator
    backward: Operator
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unsaved: tuple[str, ...] = ()
    keeps_output: Callable[..., bool] = lambda *options: True
    passed_through: Callable[..., int] = lambda *options: 0
    formula_backward: Callable[..., list[Tensor | None]] | None = None

    def __post_init__(self) -> None:
        count = self.forward.tensors
        self.name = self.forward.name
        self.inputs, self.options = self.forward.arguments[:count], self.forward.arguments[count:]
        known = (*self.inputs, *self.forward.results)
        saved = [name for name in self.backward.arguments if name in known and name not in self.unsaved]
        output = self.forward.results[0]

        def variant(options: Values) -> Variant:
            values = dict(zip(self.options, options, strict=True))
            integers = tuple(list(self.choices[name]).index(value) for name, value in values.items())
            absent = () if self.keeps_output(*options) else (output,)
            places = tuple(-1 if name in absent else known.index(name) for name in saved)
            return Variant(options, integers, places, self.passed_through(*options))

        every = itertools.product(*(self.choices[name] for name in self.options))
        self._variants = {options: variant(options) for options in every}
        self._unsaved = tuple(self.inputs.index(name) for name in self.unsaved)
        of_backward = ["grad", *saved, *self.unsaved, *self.options, "needs"]
        self._order = tuple(
            of_backward.index("grad" if name.startswith("grad_") else name) for name in self.backward.arguments
        )
        self._grads = tuple(self.backward.results.index(f"grad_{name}") for name in self.inputs)
        self._single = len(self.forward.results) == 1
        words = "".join(word.capitalize() for word in self.name.split("_"))
        self._function = type(f"{words}Function", (FusedFunction,), {})

    def integers(self, options: Values) -> tuple[int, ...]:
        """The integers that stand for options in the schemas.

        Raises:
            LookupError, TypeError: one has none.
        """
        return self._variants[options].integers

    def run(self, backend: str, inputs: Values, options: Values) -> Tensor:
        if _grad_enabled() and needs_grad(*inputs):
            return self._function.apply(self.name, backend, *distinct(*inputs), *options)
        results = self.forward.on[backend](*inputs, *self._variants[options].integers)
        return results if self._single else results[0]

    def differentiate(
        self, inputs: list[Tensor | None], output: Tensor | None, grad: Tensor, options: Values
    ) -> list[Tensor | None]:
        """The inputs' gradients by the formula, for derivatives of derivatives."""
        if self.formula_backward is not None:
            return self.formula_backward(*inputs, output, grad, *options)
        return reference_backward(lambda *tensors: self.formula(*tensors, *options), inputs, grad)


class FusedFunction(torch.autograd.Function):
    """The autograd Function of the ops, each by a subclass of its name; it saves what the backward operator takes.

    It is given the op by name: the compiler of PyTorch 2.10 cannot read one from a closure.
    """

    @staticmethod
    def forward(ctx: Any, name: str, backend: str, *values: Any) -> Tensor:
        op = backends.OPS[name]
        count, unsaved = len(op.inputs), op._unsaved
        inputs, variant = values[:count], op._variants[values[count:]]
        results = op.forward.on[backend](*inputs, *variant.integers)
        results = (results,) if op._single else results
        ctx.set_materialize_grads(False)
        ctx.name, ctx.backend, ctx.variant = name, backend, variant
        if unsaved:
            ctx.unsaved = Unsaved(*[inputs[i] for i in unsaved])
        known = (*inputs, *results, None)
        ctx.save_for_backward(*[known[i] for i in variant.saved])
        return results[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        op, variant = backends.OPS[ctx.name], ctx.variant
        count, unsaved, through = len(op.inputs), op._unsaved, variant.passed_through
        wanted = ctx.needs_input_grad[2 : 2 + count]
        if differentiates_formula(grad):
            known: list[Tensor | None] = [None] * (count + len(op.forward.results) + 1)
            for i, tensor in zip(variant.saved, ctx.saved_tensors, strict=True):
                known[i] = tensor
            if unsaved:
                for i, tensor in zip(unsaved, ctx.unsaved.unchanged(op.name, *op.unsaved), strict=True):
                    known[i] = tensor
            grads = op.differentiate(known[:count], known[count], grad, variant.options)
        elif needs := needs_bits(wanted) & ~through:
            others = ctx.unsaved.tensors if unsaved else ()
            given = (grad, *ctx.saved_tensors, *others, *variant.integers, needs)
            results = op.backward.on[ctx.backend](*[given[i] for i in op._order])
            grads = [grad if through >> i & 1 else results[place] for i, place in enumerate(op._grads)]
        else:
            grads = [grad] * count
        of_options = (None,) * len(op.options)
        return None, None, *(g if want else None for g, want in zip(grads, wanted, strict=True)), *of_options
