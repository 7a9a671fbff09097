"""CUDA-graph capture and concurrent streams: results equal to those of plain calls, bit for bit."""

from __future__ import annotations

import argparse
import sys

import torch

from attnkernels import testing

REPLAYS = 4
STREAMS = 4


class Call:
    """An op's forward and backward on tensors of its own."""

    def __init__(self, case: testing.OpCase, dtype: torch.dtype, layout: str, backend: str, seed: int = 0):
        self.case, self.backend = case, backend
        arguments = case.make(dtype, "cuda", layout, seed)
        self.args, self.kwargs = testing.map_tensors(arguments, lambda tensor: tensor.detach().requires_grad_())
        self.leaves = list(testing.tensors_of((self.args, self.kwargs)))
        with torch.no_grad():
            output = testing.run(case.op, self.args, self.kwargs, backend)
        self.grad = torch.randn_like(output)

    def __call__(self) -> list[torch.Tensor]:
        output = testing.run(self.case.op, self.args, self.kwargs, self.backend)
        grads = torch.autograd.grad(output, self.leaves, self.grad, allow_unused=True)
        return [output.detach(), *(grad for grad in grads if grad is not None)]

    def take_values_of(self, other: Call) -> None:
        with torch.no_grad():
            for mine, its in zip((*self.leaves, self.grad), (*other.leaves, other.grad), strict=True):
                mine.copy_(its)


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor], what: str) -> None:
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(
            a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=index: f"{what}, result {i}: {m}"
        )


def check_graph(case: testing.OpCase, dtype: torch.dtype, layout: str, backend: str) -> None:
    """One capture, replayed on new values in the same memory; counters that a kernel forgets to reset show here."""
    call = Call(case, dtype, layout, backend)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()  # the values were made on another stream
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = call()
    for seed in range(REPLAYS):
        fresh = Call(case, dtype, layout, backend, seed)
        call.take_values_of(fresh)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(results, fresh(), f"replay {seed}")


def check_streams(case: testing.OpCase, dtype: torch.dtype, layout: str, backend: str) -> None:
    """Calls in flight on several streams at once do not share scratch memory."""
    calls = [Call(case, dtype, layout, backend, seed) for seed in range(STREAMS)]
    want = [call() for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    results: list[list[torch.Tensor]] = [[] for _ in calls]
    for _ in range(REPLAYS):
        for index, (call, stream) in enumerate(zip(calls, streams, strict=True)):
            with torch.cuda.stream(stream):
                results[index] = call()
    torch.cuda.synchronize()
    for index, (got, expected) in enumerate(zip(results, want, strict=True)):
        assert_same(got, expected, f"stream {index}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", default="cuda,triton")
    arguments = parser.parse_args()
    failed = checked = 0
    for backend in arguments.backends.split(","):
        for case in testing.cases(small=True):
            for dtype, layout in ((torch.float32, "contiguous"), (torch.bfloat16, "channels_last")):
                for check in (check_graph, check_streams):
                    checked += 1
                    try:
                        check(case, dtype, layout, backend)
                    except Exception as error:  # every case is to be tried, whatever one does
                        failed += 1
                        where = f"{check.__name__} {case} {backend} {dtype} {layout}"
                        print(f"FAILED {where}: {type(error).__name__}: {error}")
    print(f"{checked} checks, {failed} failed")
    return 1 if failed or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
