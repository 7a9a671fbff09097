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


def test_active_clusters(bench):
    # One block of 200 KB per multiprocessor: two clusters of 8 in each of eight groups of 16 multiprocessors.
    assert bench.module.max_active_clusters(8, 512, 200 * 1024) == 16
    assert bench.module.max_active_clusters(8, 512, 100 * 1024) == 32
    assert bench.module.max_active_clusters(8, 512, 228 * 1024) == 0
    with bench.device(multiprocessors=12, multiprocessors_per_cluster_group=6):
        assert bench.module.max_active_clusters(8, 512, 200 * 1024) == 0
        assert bench.module.max_active_clusters(4, 512, 200 * 1024) == 2


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
