#include "emulation/python.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include "emulation/device.h"
#include "emulation/scheduler.h"
#include "emulation/traffic.h"

namespace py = pybind11;

namespace attnkernels::emulation {
namespace {

struct Field {
  const char* name;
  int Device::* value;
};
constexpr Field kDeviceFields[] = {
    {"major", &Device::major},
    {"minor", &Device::minor},
    {"multiprocessors", &Device::multiprocessors},
    {"threads_per_multiprocessor", &Device::threads_per_multiprocessor},
    {"blocks_per_multiprocessor", &Device::blocks_per_multiprocessor},
    {"shared_per_block", &Device::shared_per_block},
    {"shared_per_block_opt_in", &Device::shared_per_block_opt_in},
    {"shared_per_multiprocessor", &Device::shared_per_multiprocessor},
    {"shared_reserved_per_block", &Device::shared_reserved_per_block},
    {"registers_per_multiprocessor", &Device::registers_per_multiprocessor},
    {"l2_bytes", &Device::l2_bytes},
};

constexpr const char* kClusterGroups = "cluster_groups";  // Device::cluster_groups, a list

py::dict get_device() {
  py::dict result;
  for (const Field& field : kDeviceFields) result[field.name] = device.*field.value;
  result[kClusterGroups] = device.cluster_groups;
  return result;
}

// Where the multiprocessors alone are given, they are in groups of 16.
std::vector<int> groups_of(int multiprocessors) {
  std::vector<int> groups;
  for (; multiprocessors > 0; multiprocessors -= groups.back()) groups.push_back(std::min(multiprocessors, 16));
  return groups;
}

void set_device(const py::dict& values) {
  Device changed = device;
  for (const auto& [key, value] : values) {
    const std::string name = py::str(key);
    if (name == kClusterGroups) continue;
    const Field* found = nullptr;
    for (const Field& field : kDeviceFields)
      if (name == field.name) found = &field;
    if (!found) throw py::key_error("the emulated device has no " + name);
    changed.*found->value = value.cast<int>();
  }
  if (values.contains(kClusterGroups))
    changed.cluster_groups = values[kClusterGroups].cast<std::vector<int>>();
  else if (values.contains("multiprocessors"))
    changed.cluster_groups = groups_of(changed.multiprocessors);
  const std::vector<int>& groups = changed.cluster_groups;
  if (std::accumulate(groups.begin(), groups.end(), 0) != changed.multiprocessors)
    throw py::value_error("cluster_groups: expected groups of " + std::to_string(changed.multiprocessors) +
                          " multiprocessors together");
  device = changed;
}

py::tuple shape(const dim3& size) { return py::make_tuple(size.x, size.y, size.z); }

py::list launches() {
  py::list result;
  for (const LaunchRecord& record : recorded_launches()) {
    py::dict launch;
    launch["kernel"] = place_of(record.grid.kernel).offset;
    launch["grid"] = shape(record.grid.grid);
    launch["block"] = shape(record.grid.block);
    launch["cluster"] = shape(record.grid.cluster);
    launch["dynamic_shared"] = record.grid.dynamic_shared;
    launch["static_shared"] = record.static_shared;
    launch["cooperative"] = record.grid.cooperative;
    launch["dependent"] = record.grid.dependent;
    result.append(launch);
  }
  return result;
}

// A structured array. Its dtype is made by hand: pybind11's registry of dtypes is one for all modules of a process.
struct Column {
  const char* name;
  const char* type;
  size_t offset;
};
#define ATTNKERNELS_COLUMN(Row, name, type) {#name, type, offsetof(Row, name)}
constexpr Column kRequestColumns[] = {
    ATTNKERNELS_COLUMN(GlobalRequest, kernel, "u8"), ATTNKERNELS_COLUMN(GlobalRequest, address, "u8"),
    ATTNKERNELS_COLUMN(GlobalRequest, lanes, "u4"),  ATTNKERNELS_COLUMN(GlobalRequest, lane_bytes, "u4"),
    ATTNKERNELS_COLUMN(GlobalRequest, bytes, "u4"),  ATTNKERNELS_COLUMN(GlobalRequest, sectors, "u4"),
    ATTNKERNELS_COLUMN(GlobalRequest, write, "u4"),  ATTNKERNELS_COLUMN(GlobalRequest, atomic, "u4"),
};
constexpr Column kSharedColumns[] = {
    ATTNKERNELS_COLUMN(SharedTraffic, kernel, "u8"),       ATTNKERNELS_COLUMN(SharedTraffic, requests, "u8"),
    ATTNKERNELS_COLUMN(SharedTraffic, wavefronts, "u8"),   ATTNKERNELS_COLUMN(SharedTraffic, least_wavefronts, "u8"),
    ATTNKERNELS_COLUMN(SharedTraffic, remote_bytes, "u8"),
};

template <class Row, size_t kColumns>
py::array table(std::vector<Row> rows, const Column (&columns)[kColumns]) {
  for (Row& row : rows) row.kernel = place_of(reinterpret_cast<const void*>(row.kernel)).offset;
  py::list names, types, offsets;
  for (const Column& column : columns) {
    names.append(column.name);
    types.append(column.type);
    offsets.append(column.offset);
  }
  return py::array(py::dtype(names, types, offsets, sizeof(Row)), rows.size(), rows.data());
}

}  // namespace

void bind_controls(py::module_& module) {
  module.def("set_seed", &set_seed, py::arg("seed"));
  module.def("get_device", &get_device);
  module.def("set_device", &set_device, py::arg("values"));
  module.def("record_launches", &record_launches, py::arg("on"));
  module.def("launches", &launches);
  module.def("begin_traffic", &begin_traffic);
  module.def("end_traffic", [] {
    end_traffic();
    return py::make_tuple(table(global_requests(), kRequestColumns), table(shared_traffic(), kSharedColumns));
  });
}

}  // namespace attnkernels::emulation
