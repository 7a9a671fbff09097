"""The emulated device, its launch checks, and the records that budgets are made of."""

import subprocess

import numpy as np
import pytest

from tools import cuda_toolkit, emulation


@pytest.fixture(scope="module")
def bench():
    return emulation.load_module("plain", "demo", "emulation_demo")


@pytest.fixture(scope="module")
def traffic_bench():
    return emulation.load_module("traffic", "demo", "emulation_demo")


def aligned(shape, alignment=128):
    """Zeros whose first byte is at a multiple of `alignment`, as a GPU's allocator gives them."""
    size = int(np.prod(shape))
    raw = np.zeros(size + alignment // 4, np.float32)
    first = -raw.ctypes.data % alignment // 4
    return raw[first : first + size].reshape(shape)


def test_numbers_and_launch_record(bench):
    x = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    y = np.full_like(x, np.nan)
    with bench.launches() as launches:
        bench.module.gate_rows(x, y)
    np.testing.assert_allclose(y, x / (1 + np.exp(-x.mean(1, keepdims=True))), rtol=1e-5)
    (launch,) = launches
    assert launch.kernel.startswith("gate_rows<float, 4")
    assert (launch.grid, launch.block, launch.cluster) == ((3, 1, 1), (256, 1, 1), (1, 1, 1))
    assert (launch.dynamic_shared, launch.static_shared, launch.cooperative) == (4000, 128, False)


def test_the_seed_decides_the_order(bench):
    x = np.random.default_rng(0).standard_normal(4000).astype(np.float32)

    def totals(seed):  # atomics in another order round differently, these sums do not
        bench.seed(seed)
        return [bench.module.sum(x, blocks=7) for _ in range(2)]

    assert len({total for seed in range(4) for total in totals(seed)}) == 1


@pytest.mark.parametrize(
    ("configuration", "error"),
    [
        ({"blocks": 3, "cluster": 2}, r"InvalidClusterSize.*does not divide"),
        ({"blocks": 16, "cluster": 16}, r"InvalidClusterSize.*more than 8"),
        ({"threads": 2000}, r"InvalidConfiguration.*1024"),
        ({"blocks": 0}, r"InvalidConfiguration.*empty"),
        ({"shared_bytes": 228 * 1024}, r"InvalidValue.*shared memory"),
        ({"blocks": 132 * 32 + 1, "cooperative": True}, r"CooperativeLaunchTooLarge.*4224 are resident"),
    ],
)
def test_a_launch_that_the_device_cannot_run(bench, configuration, error):
    x = np.ones(100, np.float32)
    with pytest.raises(RuntimeError, match=error):
        bench.module.sum(x, **configuration)
    assert bench.module.sum(x) == 100  # the next launch works


def test_no_clusters_before_compute_capability_9(bench):
    x = np.ones(100, np.float32)
    assert bench.module.sum(x, cluster=4) == 100
    with bench.device(major=8, minor=6), pytest.raises(RuntimeError, match="NotSupported"):
        bench.module.sum(x, cluster=4)
    assert bench.module.sum(x, cluster=4) == 100


def test_the_device_can_be_set(bench):
    assert bench.module.attribute(bench.module.MULTIPROCESSOR_COUNT) == 132
    with bench.device(multiprocessors=68, major=7, minor=5, l2_bytes=1 << 22):
        assert bench.module.attribute(bench.module.MULTIPROCESSOR_COUNT) == 68
        assert bench.module.attribute(bench.module.COMPUTE_CAPABILITY_MAJOR) == 7
        assert bench.module.attribute(bench.module.L2_CACHE_SIZE) == 1 << 22
    assert bench.module.attribute(bench.module.COMPUTE_CAPABILITY_MAJOR) == 9
    with pytest.raises(KeyError, match="warp_size"), bench.device(warp_size=64):
        pass
    with pytest.raises(RuntimeError, match="does not know"):
        bench.module.attribute(-1)


# What cudaOccupancyMaxActiveClusters gives on an H100 SXM for clusters of blocks of 256 threads, by the bytes of shared
# memory of a block.
MEASURED_CLUSTERS = {
    1: {204800: 132, 102400: 264, 51200: 528, 0: 1056},
    2: {204800: 66, 102400: 132, 51200: 264, 0: 528},
    4: {204800: 30, 102400: 62, 51200: 124, 0: 248},
    8: {204800: 15, 102400: 30, 51200: 62, 0: 124},
    16: {204800: 7, 102400: 14, 51200: 28, 0: 58},
}


@pytest.mark.parametrize("size", MEASURED_CLUSTERS)
def test_active_clusters_are_those_of_an_h100(bench, size):
    measured = MEASURED_CLUSTERS[size]
    assert {shared: bench.module.max_active_clusters(size, 256, shared) for shared in measured} == measured


def test_active_clusters(bench):
    assert bench.module.max_active_clusters(8, 512, 228 * 1024) == 0
    assert bench.module.max_active_clusters(32, 512, 0) == 0
    with bench.device(multiprocessors=12, cluster_groups=[6, 6]):
        assert bench.module.max_active_clusters(8, 512, 200 * 1024) == 0
        assert bench.module.max_active_clusters(4, 512, 200 * 1024) == 2
    with bench.device(multiprocessors=36):  # in groups of 16, 16 and 4
        assert bench.module.max_active_clusters(8, 512, 200 * 1024) == 4
        assert bench.module.max_active_clusters(4, 512, 200 * 1024) == 9
    with pytest.raises(ValueError, match="132 multiprocessors together"), bench.device(cluster_groups=[16]):
        pass


def test_a_dependent_launch(bench):
    x, y = np.random.default_rng(0).standard_normal(500).astype(np.float32), np.empty(500, np.float32)
    with bench.launches() as launches:
        for seed in range(4):
            bench.seed(seed)
            y.fill(np.nan)
            bench.module.dependent(x, y)
            between = x[::-1] + 2 * x
            np.testing.assert_allclose(y, between[::-1] + x + between, rtol=1e-5)
    assert [launch.dependent for launch in launches] == 4 * [False, True]


def test_a_dependent_launch_that_is_refused(bench):
    x, y = np.ones(100, np.float32), np.full(100, np.nan, np.float32)
    refused = pytest.raises(RuntimeError, match="NotSupported.*9.0")
    with bench.launches() as launches, bench.device(major=8, minor=6), refused:
        bench.module.dependent(x, y)
    assert [launch.dependent for launch in launches] == [False]  # the plain launch before it has run
    with pytest.raises(RuntimeError, match="InvalidValue.*follows no other"):
        bench.module.dependent(x, y, first=True)
    assert np.isnan(y).all()


def test_nothing_is_left_of_a_chain_that_fails(bench):
    x, y = np.ones(100, np.float32), np.full(100, np.nan, np.float32)  # the last threads have no number
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"thread \d+ of a dependent launch ended without wait.*emulation_demo"):
            bench.module.returns_early(x, y)
    bench.module.dependent(x, y)
    np.testing.assert_array_equal(y, 7)


def test_a_write_before_the_wait_is_reported(traffic_bench):
    x, y = np.ones(100, np.float32), np.empty(100, np.float32)
    traffic_bench.module.dependent(x, y)
    with pytest.raises(RuntimeError, match="writes global memory before wait_for_primary_grid"):
        traffic_bench.module.writes_early(x, y)


def test_a_spin_that_nobody_ends_is_reported(bench):
    with pytest.raises(RuntimeError, match="livelock"):
        bench.module.spin()


def test_too_much_static_shared_memory(bench):
    with pytest.raises(RuntimeError, match="262144 bytes, exceeds 48 KiB"):
        bench.module.much_static_shared()


def test_traffic_of_vector_and_scalar_accesses(traffic_bench):
    x, y = aligned((4, 1024)), aligned((4, 1024))
    for kernel, width in (("gate_rows", 16), ("gate_rows_by_one", 4)):
        with traffic_bench.traffic({"x": x, "y": y}) as traffic:
            getattr(traffic_bench.module, kernel)(x, y)
        read, written = traffic.buffers
        assert (read.buffer, read.write, written.buffer, written.write) == ("x", False, "y", True)
        for row in (read, written):
            assert (row.factor, row.bytes_per_access, row.sector_efficiency, row.atomics) == (1, width, 1, 0)
            assert row.requests == 4 * 1024 * 4 // (32 * width)


def test_traffic_of_misaligned_rows(traffic_bench):
    x, y = aligned((4, 1028))[:, :1025], aligned((4, 1024))  # the rows must be dense: a copy, 4 bytes off
    x = aligned((4 * 1024 + 1,))[1:].reshape(4, 1024)
    with traffic_bench.traffic({"x": x, "y": y}) as traffic:
        traffic_bench.module.gate_rows_by_one(x, y)
    assert traffic.buffers[0].sector_efficiency == pytest.approx(128 / 160)  # 128 bytes in 5 sectors instead of 4


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (8, 8), (31, 1), (32, 32)])
def test_bank_conflicts(traffic_bench, stride, wavefronts):
    bank = aligned((32,))
    with traffic_bench.traffic({"bank": bank}) as traffic:
        traffic_bench.module.strided_shared(bank, stride)
    (shared,) = traffic.shared
    zeroing = 1024 // 32  # requests without conflicts
    assert shared.requests == zeroing + 1
    assert shared.conflicts * shared.requests == pytest.approx(zeroing + wavefronts)


def test_kernel_names():
    names = {
        "void a::(anonymous namespace)::pool<a::Relu, 4>(float const*, int)": "pool<Relu, 4>",
        "a::scale(float*)": "scale",
        "void a::b<float, (a::Kind)1>(a::c<int>)": "b<float, (Kind)1>",
        "std::enable_if<true, void>::type k<__half>(__half)": "k<__half>",
    }
    for demangled, short in names.items():
        assert emulation.short_name(demangled) == short


@pytest.mark.skipif(not (cuda_toolkit.nvcc() and cuda_toolkit.utility("cuobjdump")), reason="no nvcc, no cuobjdump")
def test_the_same_source_gives_tensor_core_instructions(tmp_path):
    source = tmp_path / "mma.cu"
    here = emulation.ROOT / "tests" / "emulation"
    source.write_text(
        f'#include "{here}/mma_matmul.cuh"\n'
        "template __global__ void mma_matmul<__half>(const __half*, const __half*, float*, int);\n"
        "template __global__ void mma_matmul<__nv_bfloat16>(const __nv_bfloat16*, const __nv_bfloat16*, float*, int);\n"
    )
    cubin = tmp_path / "mma.cubin"
    compile_command = [cuda_toolkit.nvcc(), "-std=c++20", "--expt-relaxed-constexpr", "-I", emulation.ROOT / "csrc"]
    subprocess.run([*compile_command, "--cubin", "-arch=sm_80", source, "-o", cubin], check=True)
    nvdisasm = [cuda_toolkit.utility("nvdisasm"), cubin]
    assembly = subprocess.run(nvdisasm, capture_output=True, text=True, check=True).stdout
    assert "HMMA.16816.F32 " in assembly
    assert "HMMA.16816.F32.BF16 " in assembly
