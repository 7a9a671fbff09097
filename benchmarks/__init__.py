"""Measurements of attnkernels: `python -m benchmarks {demo,micro,models,compare,plot}`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler, which counts allocations, is silent
