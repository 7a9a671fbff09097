// The library of every op's kernels, run on the host: registers the operators of namespace attnkernels_emulated when
// it is loaded, and is the Python module that controls the emulation.
#include "emulation/python.h"

PYBIND11_MODULE(attnkernels_emulated, module) {
  module.doc() = "The CUDA kernels of attnkernels on the host, and the controls of their emulation";
  attnkernels::emulation::bind_controls(module);
  attnkernels::emulation::bind_layout(module);
  attnkernels::emulation::bind_plans(module);
}
