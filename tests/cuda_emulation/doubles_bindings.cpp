// The Python face of the test doubles.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "doubles.h"

namespace py = pybind11;
using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int, py::array::c_style>;

PYBIND11_MODULE(_cuda_doubles, m) {
  cuda_emulation::bind_controls(m);
  m.def("block_sum", [](const Floats& values) { return block_sum(values.data()); });
  m.def("block_sum_without_barrier",
        [](const Floats& values) { return block_sum_without_barrier(values.data()); });
  py::enum_<Barriers>(m, "Barriers")
      .value("met", Barriers::kMet)
      .value("left", Barriers::kLeft)
      .value("other", Barriers::kOther);
  m.def("meet", &meet);
  m.def("write_shared", &write_shared);
  m.def("write_static_shared", &write_static_shared);
  m.def("shuffle_among", &shuffle_among);
  m.def("warp_operations", [](const Ints& values) {
    Ints out({8, 64});
    warp_operations(values.data(), out.mutable_data());
    return out;
  });
  m.def("count_up", &count_up);
  m.def("count_in_shared", &count_in_shared);
  m.def("pass_around", [](bool has_syncwarp) {
    Ints out(32);
    pass_around(has_syncwarp, out.mutable_data());
    return out;
  });
  m.def("sum_over_cluster", [](int blocks, bool waits) {
    Ints out(blocks);
    sum_over_cluster(blocks, waits, out.mutable_data());
    return out;
  });
  m.def("order_of_blocks", [](int blocks) {
    Ints out(blocks);
    order_of_blocks(blocks, out.mutable_data());
    return out;
  });
  m.def("many_barriers", &many_barriers);
  m.def("launch_with", &launch_with);
}
