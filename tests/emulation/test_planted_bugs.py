"""Every kind of bug that the emulation promises to find is planted in a small kernel, and must be found."""

import subprocess

import pytest

from tools import emulation

MODES = ("plain", "asan", "tsan")
KERNELS = (
    "gate_rows",
    "subtract_last",
    "reverse_warps",
    "subtract_mean",
    "cluster_mean",
    "last_block_sum",
    "dependent_chain",
    "divergent_barrier",
)
WRONG = "want"  # the program compared the numbers itself
RACE = "ThreadSanitizer: data race"

# kernel, bug, mode that must find it, what it must say
BUGS = [
    ("gate_rows", "no_block_barrier", "plain", WRONG),
    ("gate_rows", "no_block_barrier", "tsan", RACE),
    ("subtract_last", "no_block_barrier", "plain", WRONG),
    ("subtract_last", "no_block_barrier", "tsan", RACE),
    ("subtract_last", "no_barrier_before_reuse", "tsan", RACE),
    ("reverse_warps", "no_warp_barrier", "tsan", RACE),
    ("gate_rows", "global_out_of_bounds", "asan", "AddressSanitizer: heap-buffer-overflow"),
    ("gate_rows", "shared_out_of_bounds", "asan", "AddressSanitizer: heap-buffer-overflow"),
    ("gate_rows", "misaligned_vector", "asan", "misaligned address"),
    ("subtract_mean", "plain_accumulate", "tsan", RACE),
    ("subtract_mean", "no_grid_barrier", "plain", WRONG),
    ("subtract_mean", "no_grid_barrier", "tsan", RACE),
    ("cluster_mean", "no_cluster_barrier", "plain", WRONG),
    ("cluster_mean", "no_cluster_barrier", "tsan", RACE),
    ("cluster_mean", "no_final_cluster_barrier", "tsan", RACE),
    ("last_block_sum", "no_release_fence", "tsan", RACE),
    ("last_block_sum", "no_acquire_fence", "tsan", RACE),
    *(
        ("dependent_chain", bug, mode, says)
        for bug in ("read_before_wait", "read_of_first_before_wait", "write_before_wait")
        for mode, says in (("plain", WRONG), ("tsan", RACE))
    ),
    *(("dependent_chain", "return_before_wait", mode, "ended without wait_for_primary_grid") for mode in MODES),
    *(("divergent_barrier", "never", mode, "deadlock") for mode in MODES),
    *(("divergent_barrier", "elsewhere", mode, "wait at different barriers") for mode in MODES),
]


# Each is an order in which threads run. One is enough for ThreadSanitizer, which is slow to start: it judges by what
# orders two accesses, not by which came first.
SEEDS = {"plain": (1, 2, 3), "asan": (1, 2, 3), "tsan": (1,)}


def run(mode: str, kernel: str, bug: str, seed: int) -> subprocess.CompletedProcess:
    return emulation.run(mode, "planted", kernel, bug, timeout=120, ATTNKERNELS_EMULATION_SEED=str(seed))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_correct_kernel_passes(mode, kernel):
    for seed in SEEDS[mode]:
        done = run(mode, kernel, "none", seed)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kernel", "bug", "mode", "says"), BUGS)
def test_a_planted_bug_is_found(kernel, bug, mode, says):
    for seed in SEEDS[mode]:
        done = run(mode, kernel, bug, seed)
        assert done.returncode != 0
        assert says in done.stderr


def test_reports_name_the_line_of_the_kernel():
    for bug, mode in (("no_block_barrier", "tsan"), ("global_out_of_bounds", "asan")):
        assert "planted.cuh:" in emulation.with_lines(run(mode, "gate_rows", bug, 1).stderr)
    assert "planted.cuh:" in run("plain", "divergent_barrier", "never", 1).stderr
    assert "planted.cuh:" in emulation.with_lines(run("plain", "dependent_chain", "return_before_wait", 1).stderr)


@pytest.mark.parametrize("mode", MODES)
def test_tensor_core_tiles(mode):
    done = emulation.run(mode, "mma", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
