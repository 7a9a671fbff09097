"""Every op's small cases, forward and backward, on one GPU backend: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python tools/sanitizer_cases.py --backend cuda
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch

from attnkernels import testing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further case after this long")
    arguments = parser.parse_args()
    started = time.monotonic()
    every = list(itertools.product((torch.float32, torch.bfloat16), testing.LAYOUTS, testing.cases(small=True)))
    ran = 0
    for dtype, layout, case in every:
        if time.monotonic() - started > arguments.seconds:
            break
        print(f"{case} {dtype} {layout}", flush=True)  # names the case under which an error is reported
        args, kwargs = case.make(dtype, "cuda", layout)
        testing.gradients(case.op, args, kwargs, arguments.backend)
        torch.cuda.synchronize()
        ran += 1
    print(f"ran {ran} of {len(every)} cases")


if __name__ == "__main__":
    main()
