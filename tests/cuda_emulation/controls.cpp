// What tests set of the emulation, in the module whose kernels it runs.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

namespace cuda_emulation {

void bind_controls(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("set_schedule", &set_schedule, py::arg("seed"), py::arg("switches_at_atomics") = false);
  m.def("set_race_detection", &set_race_detection, py::arg("is_on"));
  m.def("num_switches", &num_switches);
  m.def("set_compute_capability", &set_compute_capability, py::arg("compute_capability"));
  m.def("set_cluster_limit", &set_cluster_limit, py::arg("blocks"));
}

}  // namespace cuda_emulation
