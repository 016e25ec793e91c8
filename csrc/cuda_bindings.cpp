// The Python face of the CUDA kernels. Pointers are integers: arguments are validated in
// mmad_fast/ops, memory is the caller's, the first argument is the device. Launches only queue work
// on the stream; the GIL is released around them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/cuda_device.h"
#include "cosine_maps/op.h"
#include "farthest_point_sampling/op.h"
#include "fpfh/op.h"
#include "inverse_distance_interpolation/op.h"
#include "knn_grouping/op.h"
#include "surface_normals/op.h"

#ifndef MMAD_FAST_CUDA_MODULE
#define MMAD_FAST_CUDA_MODULE _cuda_kernels
#endif

namespace py = pybind11;
namespace cuda = mmad_fast::cuda;
using mmad_fast::NeighborRows;

namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_device(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("device_count", &cuda::device_count, Release());
  m.def(
      "driver_problem",
      []() -> std::optional<std::string> {
        std::string problem = cuda::driver_problem();
        if (problem.empty()) return std::nullopt;
        return problem;
      },
      Release());
  m.def("compute_capability", &cuda::compute_capability, py::arg("device"), Release());
  m.def(
      "allocate",
      [](int device, int64_t bytes, uintptr_t stream) {
        return reinterpret_cast<uintptr_t>(cuda::allocate(device, bytes, at<void>(stream)));
      },
      py::arg("device"), py::arg("bytes"), py::arg("stream"), Release());
  m.def(
      "free",
      [](int device, uintptr_t pointer, uintptr_t stream) {
        cuda::free(device, at<void>(pointer), at<void>(stream));
      },
      py::arg("device"), py::arg("pointer"), py::arg("stream"), Release());
  m.def(
      "copy_to_host",
      [](int device, uintptr_t pointer, int64_t bytes, uintptr_t stream) {
        PyObject* copy = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes));
        if (copy == nullptr) throw py::error_already_set();
        py::bytes result = py::reinterpret_steal<py::bytes>(copy);
        char* target = PyBytes_AS_STRING(copy);
        {
          py::gil_scoped_release release;
          cuda::copy_to_host(device, at<void>(pointer), bytes, target, at<void>(stream));
        }
        return result;
      },
      py::arg("device"), py::arg("pointer"), py::arg("bytes"), py::arg("stream"));
}

// points (N, 3) float32; indices (num_samples,) int64 is written.
void bind_farthest_point_sampling(py::module_& m) {
  m.def("farthest_point_sampling_workspace", &cuda::farthest_point_sampling_workspace,
        py::arg("num_points"));
  m.def(
      "farthest_point_sampling",
      [](int device, uintptr_t points, int64_t num_points, int64_t num_samples, int64_t start_index,
         bool skip_near_origin, uintptr_t indices, uintptr_t workspace, uintptr_t stream) {
        const cuda::DeviceGuard guard(device);
        cuda::farthest_point_sampling(at<const float>(points), num_points, num_samples, start_index,
                                      skip_near_origin, at<int64_t>(indices), at<void>(workspace),
                                      at<void>(stream));
      },
      py::arg("device"), py::arg("points"), py::arg("num_points"), py::arg("num_samples"),
      py::arg("start_index"), py::arg("skip_near_origin"), py::arg("indices"), py::arg("workspace"),
      py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

void bind_neighbor_rows(py::module_& m) {
  py::class_<NeighborRows>(m, "NeighborRows", py::module_local())
      .def(py::init([](uintptr_t indices, uintptr_t squared_distances, uintptr_t counts,
                       int64_t row_length, int32_t max_neighbors, float squared_radius) {
             return NeighborRows{at<const int32_t>(indices),
                                 at<const float>(squared_distances),
                                 at<const int32_t>(counts),
                                 row_length,
                                 max_neighbors,
                                 squared_radius};
           }),
           py::kw_only(), py::arg("indices"), py::arg("squared_distances"), py::arg("counts"),
           py::arg("row_length"), py::arg("max_neighbors"), py::arg("squared_radius"));
}

// points (N, 3) float32, center_indices (G,) int64; indices (G, K) int64 and groups (G, K, 3)
// float32 are written. Of every point as a centre: indices (N, K) int32, squared_distances (N, K)
// float32 and counts (N,) int32.
void bind_knn_grouping(py::module_& m) {
  m.def("knn_grouping_workspace", &cuda::knn_grouping_workspace, py::arg("num_points"),
        py::arg("num_centers"), py::arg("num_neighbors"));
  m.def(
      "knn_grouping",
      [](int device, uintptr_t points, int64_t num_points, uintptr_t center_indices,
         int64_t num_centers, int64_t num_neighbors, uintptr_t indices, uintptr_t groups,
         uintptr_t workspace, uintptr_t stream) {
        const cuda::DeviceGuard guard(device);
        cuda::knn_grouping(at<const float>(points), num_points, at<const int64_t>(center_indices),
                           num_centers, num_neighbors, at<int64_t>(indices), at<float>(groups),
                           at<void>(workspace), at<void>(stream));
      },
      py::arg("device"), py::arg("points"), py::arg("num_points"), py::arg("center_indices"),
      py::arg("num_centers"), py::arg("num_neighbors"), py::arg("indices"), py::arg("groups"),
      py::arg("workspace"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "point_neighbors",
      [](int device, uintptr_t points, int64_t num_points, int64_t num_neighbors,
         float squared_radius, uintptr_t indices, uintptr_t squared_distances, uintptr_t counts,
         uintptr_t workspace, uintptr_t stream) {
        const cuda::DeviceGuard guard(device);
        cuda::point_neighbors(at<const float>(points), num_points, num_neighbors, squared_radius,
                              at<int32_t>(indices), at<float>(squared_distances),
                              at<int32_t>(counts), at<void>(workspace), at<void>(stream));
      },
      py::arg("device"), py::arg("points"), py::arg("num_points"), py::arg("num_neighbors"),
      py::arg("squared_radius"), py::arg("indices"), py::arg("squared_distances"),
      py::arg("counts"), py::arg("workspace"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

// points (N, 3) float32 and the rows of their neighbours; normals (N, 3) float32 or float64 are
// written.
void bind_surface_normals(py::module_& m) {
  m.def(
      "surface_normals",
      [](int device, uintptr_t points, int64_t num_points, const NeighborRows& neighbors,
         bool faces_camera, bool is_double, uintptr_t normals, uintptr_t stream) {
        const cuda::DeviceGuard guard(device);
        const auto run = [&](auto* target) {
          cuda::surface_normals(at<const float>(points), num_points, neighbors, faces_camera,
                                target, at<void>(stream));
        };
        is_double ? run(at<double>(normals)) : run(at<float>(normals));
      },
      py::arg("device"), py::arg("points"), py::arg("num_points"), py::arg("neighbors"),
      py::arg("faces_camera"), py::arg("is_double"), py::arg("normals"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

// points (N, 3) float32, normals (N, 3) float32 or float64 and the rows of the points' neighbours;
// features (N, 33) float32 are written.
void bind_fpfh(py::module_& m) {
  m.def("fpfh_workspace", &cuda::fpfh_workspace, py::arg("num_points"));
  m.def(
      "fpfh",
      [](int device, uintptr_t points, uintptr_t normals, bool is_double, int64_t num_points,
         const NeighborRows& neighbors, uintptr_t features, uintptr_t workspace, uintptr_t stream) {
        const cuda::DeviceGuard guard(device);
        const auto run = [&](const auto* source) {
          cuda::fpfh(at<const float>(points), source, num_points, neighbors, at<float>(features),
                     at<void>(workspace), at<void>(stream));
        };
        is_double ? run(at<const double>(normals)) : run(at<const float>(normals));
      },
      py::arg("device"), py::arg("points"), py::arg("normals"), py::arg("is_double"),
      py::arg("num_points"), py::arg("neighbors"), py::arg("features"), py::arg("workspace"),
      py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

// points (N, 3) and centers (G, 3) float32; indices (N, 3) int64 and weights (N, 3) float32 are
// written.
void bind_inverse_distance_interpolation(py::module_& m) {
  m.def(
      "inverse_distance_weights",
      [](int device, uintptr_t points, int64_t num_points, uintptr_t centers, int64_t num_centers,
         uintptr_t indices, uintptr_t weights, uintptr_t stream) {
        const cuda::DeviceGuard guard(device);
        cuda::inverse_distance_weights(at<const float>(points), num_points,
                                       at<const float>(centers), num_centers, at<int64_t>(indices),
                                       at<float>(weights), at<void>(stream));
      },
      py::arg("device"), py::arg("points"), py::arg("num_points"), py::arg("centers"),
      py::arg("num_centers"), py::arg("indices"), py::arg("weights"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

// levels: of each the maps' addresses, target and restored, and their shape C, H, W; map (size,
// size) float32 is written.
void bind_cosine_maps(py::module_& m) {
  using Level = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;
  const auto read = [](const std::vector<Level>& levels) {
    std::vector<mmad_fast::CosineLevel> found;
    for (const auto& [target, restored, channels, height, width] : levels) {
      found.push_back(
          {at<const float>(target), at<const float>(restored), channels, height, width});
    }
    return found;
  };
  m.def(
      "cosine_maps_workspace",
      [read](const std::vector<Level>& levels, int64_t size) {
        return cuda::cosine_maps_workspace(read(levels), size);
      },
      py::arg("levels"), py::arg("size"));
  m.def(
      "cosine_maps",
      [read](int device, const std::vector<Level>& levels, int64_t size, double sigma,
             bool align_corners, uintptr_t map, uintptr_t workspace, uintptr_t stream) {
        const cuda::DeviceGuard guard(device);
        cuda::cosine_maps(read(levels), size, sigma, align_corners, at<float>(map),
                          at<void>(workspace), at<void>(stream));
      },
      py::arg("device"), py::arg("levels"), py::arg("size"), py::arg("sigma"),
      py::arg("align_corners"), py::arg("map"), py::arg("workspace"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(MMAD_FAST_CUDA_MODULE, m) {
  bind_device(m);
  bind_farthest_point_sampling(m);
  bind_neighbor_rows(m);
  bind_knn_grouping(m);
  bind_surface_normals(m);
  bind_fpfh(m);
  bind_inverse_distance_interpolation(m);
  bind_cosine_maps(m);
#ifdef MMAD_FAST_CUDA_EMULATION
  cuda_emulation::bind_controls(m);  // tests/cuda_emulation
#endif
}
