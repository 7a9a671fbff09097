"""What kernels cost, in a committed table: `benchmarks/budgets/<op>.json` (docs/emulation.md).

A row has a key (op's kernel, backend, architecture, dtype, case, buffer: whatever tells it from others) and figures.
Three sources fill it: `cuda` (what nvcc made of the kernels), `triton` (what Triton made of them, ahead of time) and
`traffic` (bytes moved, counted by the host emulation). A new source is a module here with

    COMPILER: str                               the table's key for the version that the figures depend on
    def compiler() -> str                       that version
    def why_unavailable() -> str                what this machine lacks; empty when nothing
    def ops() -> list[str]                    the ops that have such kernels
    def rows(op, quick) -> Iterator[dict]     one row a kernel; `quick`: those that a test can afford

`python -m tools.budgets` compares, `python -m tools.budgets --update` rewrites the table.
"""
