// What a Python module of emulated kernels binds (attnkernels/testing/emulation.py wraps it).
#pragma once
#include <pybind11/pybind11.h>

namespace attnkernels::emulation {

void bind_controls(pybind11::module_& module);  // the emulation's controls and records
void bind_layout(pybind11::module_& module);    // copies into another layout
void bind_plans(pybind11::module_& module);     // what the launchers of the ops choose

}  // namespace attnkernels::emulation
