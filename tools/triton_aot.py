"""Compiles Triton kernels for GPUs that are not there and reads what they use from the machine code.

    python tools/triton_aot.py [OP ...]

An op takes part by the list COMPILED of its cases (attnkernels/testing/cases): calls of public functions, made on meta
tensors. The launches of a call are recorded, not run, and compiled exactly as the call would specialise them (16-byte
aligned pointers). A row has the registers and shared memory of a kernel, its spills in bytes and its widest
global load and store in bits.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from attnkernels import backends, testing  # noqa: E402  (the line above makes the tool run from a clone)
from attnkernels.ops import _triton  # noqa: E402

ARCHITECTURES = (80, 90, 100, 120)
DTYPES = {
    "float64": (torch.float64, "*fp64"),
    "float32": (torch.float32, "*fp32"),
    "float16": (torch.float16, "*fp16"),
    "bfloat16": (torch.bfloat16, "*bf16"),
}
_POINTER = dict(DTYPES.values())
_TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def ops() -> list[str]:
    """The ops that have a Triton backend."""
    return sorted(testing.COMPILED)


class _OnMeta(TorchDispatchMode):
    """Sends meta tensors where CUDA tensors go: to the Triton launchers, which would be shape functions otherwise."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "attnkernels_triton":
            return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def recorded(op: str, dtype: torch.dtype) -> dict[str, tuple[_triton.Launch, tuple]]:
    """The launches of the op's budgeted calls under "kernel/call": the first of each kernel in a call."""
    launches = {}
    with mock.patch.object(backends, "unavailable", return_value=""), _OnMeta():
        for budgeted in testing.COMPILED[op]:
            with _triton.recorded_launches():
                call = budgeted.prepare("triton", dtype, "meta")
            with _triton.recorded_launches() as made:
                call()
            for launch, arguments in made:
                launches.setdefault(f"{launch.kernel.__name__}/{budgeted.name}", (launch, arguments))
    return launches


def compile_launch(launch: _triton.Launch, arguments: tuple, architecture: int) -> Any:
    """The compiled kernel of a recorded launch, for compute capability `architecture` (90 for 9.0)."""
    signature, constants, attributes = {}, {}, {}
    names = launch.kernel.arg_names
    for position, (name, value) in enumerate(zip(names, (*arguments, *launch.constants), strict=True)):
        if isinstance(value, torch.Tensor):
            signature[name] = _POINTER[value.dtype]
            attributes[position,] = [["tt.divisibility", 16]]
        elif value is None or position >= len(arguments):
            signature[name] = "constexpr"
            constants[position,] = value
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": launch.warps})


def figures(compiled: Any) -> dict[str, int]:
    """Registers, shared memory and spills in bytes, widest global load and store in bits."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool_output("cuobjdump", "-res-usage", file.name)
        instructions = _tool_output("nvdisasm", file.name)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        # Dynamic: cuobjdump knows only what is static.
        "shared_bytes": compiled.metadata.shared,
        "spill_bytes": found["STACK"] + found["LOCAL"],
        "load_bits": _widest(instructions, "LDG"),
        "store_bits": _widest(instructions, "STG"),
    }


def _tool_output(tool: str, *arguments: str) -> str:
    result = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def _widest(instructions: str, opcode: str) -> int:
    """Bits of the widest access: the size among an opcode's modifiers, 32 where it names none."""
    widest = 0
    for modifiers in re.findall(rf"\b{opcode}((?:\.\w+)*)", instructions):
        sizes = [int(size) for size in re.findall(r"\.[US]?(8|16|64|128|256)\b", modifiers)]
        widest = max(widest, *sizes or [32])
    return widest


def rows(
    op: str, architectures: tuple[int, ...] = ARCHITECTURES, dtypes: tuple[str, ...] = tuple(DTYPES)
) -> Iterator[dict]:
    """One row for each kernel, dtype and architecture."""
    for dtype in dtypes:
        for kernel, (launch, arguments) in recorded(op, DTYPES[dtype][0]).items():
            for architecture in architectures:
                found = figures(compile_launch(launch, arguments, architecture))
                yield {
                    "kernel": kernel,
                    "backend": "triton",
                    "arch": f"sm_{architecture}",
                    "dtype": dtype,
                    "figures": found,
                }


if __name__ == "__main__":
    for each in sys.argv[1:] or ops():
        for row in rows(each):
            print(json.dumps(row), flush=True)
