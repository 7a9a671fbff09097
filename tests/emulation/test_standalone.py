"""Every op's stand-alone program: the launchers on memory of exact size, under sanitizers."""

import pytest

from tools import emulated, emulation

OPS = [name for name in emulated.programs() if list((emulated.ROOT / "csrc" / name).glob("*.cu"))]


def test_every_room_with_cuda_kernels_has_a_program():
    assert sorted({path.parent.name for path in (emulated.ROOT / "csrc").glob("*/*.cu")}) == OPS


@pytest.mark.parametrize("mode", ["asan", "tsan"])
@pytest.mark.parametrize("op", OPS)
def test_program(op, mode):
    done = emulation.run(mode, op, timeout=500)
    assert done.returncode == 0, done.stdout + emulation.with_lines(done.stderr[:20000])
