"""What is special about a call: asked in one place by the functions, the layers and the patched modules.

Most calls are ordinary, and small ones take microseconds: the question is asked once, and each condition that makes a
call special is named here and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn.modules import module as _module

PLAIN = frozenset((Tensor, nn.Parameter, type(None), FakeTensor))  # the operators have shape functions for fake ones
TENSORS = frozenset((Tensor, nn.Parameter))
transforms_active = torch._C._are_functorch_transforms_active

# What a call does besides calling operators. Each does what those before it do as well.
FUNCTION = 0  # nothing
PASSES_MODULES = 1  # it reads the weights of modules and never calls them
WRITES_OVER = 2  # it writes over what another call returned

_GLOBAL_HOOKS = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
_compiler = torch.compiler
# Names of this module: each lookup in another one is two or three cache lines more.
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack


def is_ordinary(x: Any, does: int = FUNCTION) -> bool:
    """Whether nothing watches, records or transforms a call on `x` that takes no notice of what the call does.

    Autograd in reverse mode does not count: the operators have derivatives. A mode counts only where it could keep what
    is written over: it sees the operators, as it would see those of the modules.

    Args:
        x: the call's first argument, whatever it is.
        does: FUNCTION, PASSES_MODULES or WRITES_OVER.
    """
    # The compiler takes the first condition for the constant True and never sees the rest.
    if is_dynamo_compiling() or _compiler._is_compiling_flag:  # as torch.compiler.is_compiling, in half the time
        return False
    if x.__class__ not in TENSORS or transforms_active() or forward_ad._current_level >= 0:
        return False
    if does:
        if _tracing_state() is not None:
            return False
        for hooks in _GLOBAL_HOOKS:
            if hooks:
                return False
        if does == WRITES_OVER:
            return not has_modes()
    return True


def beyond_reverse_mode() -> str:
    """In which transform the call is that kernels do not know ("inside ..."); empty where there is none.

    The kernels know reverse mode, one call at a time: tangents, batches of vmap and nested transforms would be lost.
    """
    if transforms_active():
        return "inside torch.func transforms and vmap"
    if forward_ad._current_level >= 0:
        return "inside a forward-mode level"
    return ""


def has_modes() -> bool:
    """Whether a TorchDispatchMode or TorchFunctionMode is active, which may keep whatever it sees."""
    return bool(_dispatch_modes() or _function_modes())
