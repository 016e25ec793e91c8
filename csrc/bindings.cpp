// The Python face of the CPU kernels. Arrays are validated in mmad_fast/ops; here shapes are only
// trusted, memory is the caller's, and the GIL is released around every kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "common/parallel.h"

namespace py = pybind11;

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "CPU kernels of mmad-fast";
  m.def("num_threads", &mmad_fast::num_threads);
  m.def("set_num_threads", &mmad_fast::set_num_threads, py::arg("count"));
}
