// Binds the emulation's controls and records into a Python module (attnkernels/testing/emulation.py wraps them).
#pragma once
#include <pybind11/pybind11.h>

namespace attnkernels::emulation {

void bind_controls(pybind11::module_& module);

}  // namespace attnkernels::emulation
