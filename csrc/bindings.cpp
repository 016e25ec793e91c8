// The Python face of the CPU kernels. mmad_fast/ops validates contents and words the refusals; here
// sizes and indices are checked once more, so that no call can reach memory that is not its own.
// Memory is the caller's, and the GIL is released around every kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/gemm.h"
#include "common/parallel.h"
#include "common/point_index.h"
#include "common/point_neighbors.h"
#include "cosine_maps/op.h"
#include "cosine_maps/smoothing.h"
#include "farthest_point_sampling/op.h"
#include "foreground/op.h"
#include "fpfh/op.h"
#include "fpfh/pair_bins.h"
#include "inverse_distance_interpolation/op.h"
#include "k_center_greedy/op.h"
#include "knn_grouping/op.h"
#include "nearest_neighbor_scoring/op.h"
#include "pixel_mapping/op.h"
#include "point_embedding/op.h"
#include "run/anomaly_map.h"
#include "run/background_plane.h"
#include "run/bilinear_rows.h"
#include "run/depth_picture.h"
#include "run/network_input.h"
#include "run/object_pictures.h"
#include "run/organised_normals.h"
#include "run/scan_points.h"
#include "surface_normals/op.h"

namespace py = pybind11;

// Largest side of a grid, most centres, as in mmad_fast/validation.py.
constexpr int64_t kMaxSide = int64_t{1} << 12;
constexpr int64_t kMaxCenters = int64_t{1} << 24;

// What is refused becomes an InvalidInputError.
void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("the kernel was called with ") + what);
}

bool is_side(int64_t side) { return side >= 1 && side <= kMaxSide; }

template <typename Array>
bool has_shape(const Array& array, std::initializer_list<int64_t> shape) {
  return array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), array.shape());
}

template <typename Array>
bool is_matrix(const Array& array) {
  return array.ndim() == 2;
}

template <typename Array>
bool is_image(const Array& array) {
  return array.ndim() == 3 && array.size() > 0 && array.shape(2) == 3;
}

template <typename Index>
void require_indices(const Index* indices, int64_t count, int64_t limit, const char* what) {
  // Without a branch per index, so that it vectorises.
  bool in_range = true;
  for (int64_t i = 0; i < count; ++i) in_range &= indices[i] >= 0 && indices[i] < limit;
  require(in_range, what);
}

// Checked rows over `num_columns` columns.
template <typename Offsets, typename Columns, typename Values>
mmad_fast::SparseRowsView view_of(const Offsets& offsets, const Columns& columns,
                                  const Values& values, int64_t num_columns) {
  require(offsets.ndim() == 1 && offsets.size() >= 1 && columns.ndim() == 1 &&
              columns.size() == values.size(),
          "sparse rows that are not (P + 1,), (nnz,) and (nnz,)");
  const int64_t* starts = offsets.data();
  const int64_t num_rows = offsets.size() - 1;
  bool ascends = starts[0] == 0 && starts[num_rows] == columns.size();
  for (int64_t row = 0; row < num_rows; ++row) ascends &= starts[row] <= starts[row + 1];
  require(ascends, "sparse rows whose offsets do not ascend from 0 to their number of entries");
  require_indices(columns.data(), columns.size(), num_columns,
                  "a column of sparse rows out of range");
  return {starts, columns.data(), values.data(), num_rows};
}

// Arrays that own what a kernel made.
template <typename T>
py::array_t<T> array_of(std::vector<T>&& values) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  py::capsule owner(owned.get(), [](void* memory) { delete static_cast<std::vector<T>*>(memory); });
  const std::vector<T>* kept = owned.release();
  return py::array_t<T>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

// (offsets, columns, values)
py::tuple arrays_of(mmad_fast::SparseRows&& rows) {
  return py::make_tuple(array_of(std::move(rows.offsets)), array_of(std::move(rows.columns)),
                        array_of(std::move(rows.values)));
}

// An image, its border, and the square image it is resized to.
template <typename Array>
void require_padded(const Array& image, const Array& square, const mmad_fast::Padding& border) {
  require(is_image(image) && is_image(square) && square.shape(0) == square.shape(1) &&
              is_side(square.shape(0)),
          "an image that is not (H, W, 3), or a target that is not (S, S, 3)");
  for (const int64_t pixels : {border.top, border.bottom, border.left, border.right})
    require(pixels >= 0 && pixels < std::max(image.shape(0), image.shape(1)),
            "a border that is wider than the image, or negative");
}

void require_neighborhood(double radius, int64_t min_points) {
  require(std::isfinite(radius) && radius > 0 && std::isfinite(1 / radius) && min_points >= 1,
          "a radius or a number of points that is not positive");
}

// scan: raw (H, W, 3) float32 or float64 in the file's unit, metres (H, W, 3) float32 that is
// written; marks are points in the file's unit, None where any number may stand.
using PointOrAny = std::tuple<std::optional<double>, std::optional<double>, std::optional<double>>;

template <typename T>
void bind_read_points(py::module_& m) {
  m.def(
      "read_points",
      [](const py::array_t<T, py::array::c_style>& raw, double units_per_metre,
         std::optional<double> missing, py::array_t<float, py::array::c_style>& metres) {
        require(raw.size() == metres.size() && raw.size() % 3 == 0,
                "points and a result of different sizes");
        require(units_per_metre > 0, "a unit that is not positive");
        const T* source = raw.data();
        float* target = metres.mutable_data();
        const int64_t num_pixels = raw.size() / 3;
        mmad_fast::ScanPoints points;
        {
          py::gil_scoped_release release;
          points = mmad_fast::read_points(source, num_pixels, units_per_metre, missing, target);
        }
        std::vector<std::pair<PointOrAny, int64_t>> marks;
        for (const auto& [value, count] : points.marks) {
          std::array<std::optional<double>, 3> point;
          for (int axis = 0; axis < 3; ++axis) {
            if (!std::isnan(value[axis])) point[axis] = value[axis];
          }
          marks.emplace_back(std::tuple_cat(point), count);
        }
        return std::make_tuple(marks, points.median_m);
      },
      py::arg("raw").noconvert(), py::arg("units_per_metre"), py::arg("missing"),
      py::arg("metres").noconvert());
}

void bind_scan(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  m.attr("MIN_PLAUSIBLE_METRES") = mmad_fast::kMinPlausibleMetres;
  m.attr("MAX_PLAUSIBLE_METRES") = mmad_fast::kMaxPlausibleMetres;
  bind_read_points<float>(m);
  bind_read_points<double>(m);
  m.def(
      "clear_marks",
      [](const Floats& metres, const std::vector<PointOrAny>& marks, double units_per_metre,
         std::optional<Floats> cleared) {
        require(metres.size() % 3 == 0 && (!cleared || cleared->size() == metres.size()),
                "points and a result of different sizes");
        require(units_per_metre > 0, "a unit that is not positive");
        std::vector<std::array<double, 3>> values;
        for (const auto& [x, y, z] : marks) {
          values.push_back({x.value_or(NAN), y.value_or(NAN), z.value_or(NAN)});
        }
        const float* source = metres.data();
        float* target = cleared ? cleared->mutable_data() : nullptr;
        const int64_t num_pixels = metres.size() / 3;
        py::gil_scoped_release release;
        return mmad_fast::clear_marks(source, num_pixels, values, units_per_metre, target);
      },
      py::arg("metres").noconvert(), py::arg("marks"), py::arg("units_per_metre"),
      py::arg("cleared").noconvert());
}

// preprocess: xyz (H, W, 3) or (P, 3) float32, states (P,) uint8 that is written, plane (4,)
// float64 or empty; source and target of resizing (H, W, 3) uint8.
void bind_preprocess(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Doubles = py::array_t<double, py::array::c_style>;
  using Bytes = py::array_t<uint8_t, py::array::c_style>;
  using Labels = py::array_t<int32_t, py::array::c_style>;
  // Tuples, whose types Python's stubs can say; arrays of a fixed size they cannot.
  using Border = std::tuple<int64_t, int64_t, int64_t, int64_t>;
  using Triple = std::tuple<double, double, double>;
  py::class_<mmad_fast::PlaneRecipe>(m, "PlaneRecipe")
      .def(py::init([](int64_t rim_width_px, int64_t min_rim_points, double min_inlier_fraction,
                       double min_rim_coverage, double plane_inlier_m, uint64_t seed) {
             return mmad_fast::PlaneRecipe{rim_width_px,     min_rim_points, min_inlier_fraction,
                                           min_rim_coverage, plane_inlier_m, seed};
           }),
           py::kw_only(), py::arg("rim_width_px"), py::arg("min_rim_points"),
           py::arg("min_inlier_fraction"), py::arg("min_rim_coverage"), py::arg("plane_inlier_m"),
           py::arg("seed"));
  m.def(
      "find_background_plane",
      [](const Floats& xyz, const mmad_fast::PlaneRecipe& recipe) {
        require(is_image(xyz), "xyz that is not (H, W, 3)");
        const float* source = xyz.data();
        const auto height = xyz.shape(0), width = xyz.shape(1);
        mmad_fast::PlaneSearch search;
        {
          py::gil_scoped_release release;
          search = mmad_fast::find_background_plane(source, height, width, recipe);
        }
        std::optional<std::tuple<double, double, double, double>> plane;
        if (search.plane) plane = std::tuple_cat(*search.plane);
        return std::make_tuple(plane, search.num_rim_points, search.num_inliers, search.reason);
      },
      py::arg("xyz").noconvert(), py::arg("recipe"));
  m.def(
      "mark_pixels",
      [](const Floats& xyz, const Doubles& plane, double removal_distance, Bytes& states) {
        require(3 * states.size() == xyz.size(), "xyz and states of different sizes");
        require(plane.size() == 0 || plane.size() == 4, "a plane that is not of 4 numbers");
        const float* source = xyz.data();
        const double* coefficients = plane.size() == 4 ? plane.data() : nullptr;
        uint8_t* target = states.mutable_data();
        const int64_t num_pixels = states.size();
        py::gil_scoped_release release;
        return mmad_fast::mark_pixels(source, num_pixels, coefficients, removal_distance, target);
      },
      py::arg("xyz").noconvert(), py::arg("plane").noconvert(), py::arg("removal_distance"),
      py::arg("states").noconvert());
  m.def(
      "keep_largest_cluster",
      [](const Floats& xyz, double radius, int64_t min_points, Bytes& states) {
        require(3 * states.size() == xyz.size(), "xyz and states of different sizes");
        require_neighborhood(radius, min_points);
        const float* source = xyz.data();
        uint8_t* target = states.mutable_data();
        const int64_t num_pixels = states.size();
        py::gil_scoped_release release;
        return mmad_fast::keep_largest_cluster(source, num_pixels, radius, min_points, target);
      },
      py::arg("xyz").noconvert(), py::arg("radius"), py::arg("min_points"),
      py::arg("states").noconvert());
  using mmad_fast::Padding;
  m.def(
      "resize_padded_rgb",
      [](const Bytes& rgb, const Border& padding, bool repeats_edge, Bytes& target,
         const std::string& filter) {
        const auto [top, bottom, left, right] = padding;
        require_padded(rgb, target, {top, bottom, left, right});
        require(filter == "bicubic" || filter == "bilinear", "an unknown filter");
        const auto kind = filter == "bicubic" ? mmad_fast::ResizingFilter::kBicubic
                                              : mmad_fast::ResizingFilter::kBilinear;
        const uint8_t* source = rgb.data();
        uint8_t* output = target.mutable_data();
        const auto height = rgb.shape(0), width = rgb.shape(1), size = target.shape(0);
        py::gil_scoped_release release;
        mmad_fast::resize_padded_rgb(source, height, width, Padding{top, bottom, left, right},
                                     repeats_edge, size, output, kind);
      },
      py::arg("rgb").noconvert(), py::arg("padding"), py::arg("repeats_edge"),
      py::arg("target").noconvert(), py::arg("filter") = "bicubic");
  m.def(
      "normalise_rgb",
      [](const Bytes& rgb, const Triple& mean, const Triple& std, Floats& image) {
        require(rgb.size() == image.size() && rgb.size() % 3 == 0, "images of different sizes");
        const uint8_t* source = rgb.data();
        float* target = image.mutable_data();
        const int64_t num_pixels = rgb.size() / 3;
        const auto [mean_r, mean_g, mean_b] = mean;
        const auto [std_r, std_g, std_b] = std;
        const double means[3] = {mean_r, mean_g, mean_b}, stds[3] = {std_r, std_g, std_b};
        py::gil_scoped_release release;
        mmad_fast::normalise_rgb(source, num_pixels, means, stds, target);
      },
      py::arg("rgb").noconvert(), py::arg("mean"), py::arg("std"), py::arg("image").noconvert());
  m.def(
      "resize_padded_xyz",
      [](const Floats& xyz, const Bytes& states, const Border& padding, Floats& grid) {
        const auto [top, bottom, left, right] = padding;
        require_padded(xyz, grid, {top, bottom, left, right});
        require(states.size() == 0 || 3 * states.size() == xyz.size(),
                "xyz and states of different sizes");
        const float* source = xyz.data();
        const uint8_t* known = states.size() == 0 ? nullptr : states.data();
        float* target = grid.mutable_data();
        const auto height = xyz.shape(0), width = xyz.shape(1), size = grid.shape(0);
        py::gil_scoped_release release;
        mmad_fast::resize_padded_xyz(source, known, height, width,
                                     Padding{top, bottom, left, right}, size, target);
      },
      py::arg("xyz").noconvert(), py::arg("states").noconvert(), py::arg("padding"),
      py::arg("grid").noconvert());
  m.def(
      "organised_normals",
      [](const Floats& xyz, double sigma, Floats& smoothed, Floats& normals) {
        require(xyz.ndim() == 3 && is_side(xyz.shape(0)), "xyz that is not (S, S, 3)");
        const int64_t side = xyz.shape(0);
        for (const Floats* array : {&xyz, &std::as_const(smoothed), &std::as_const(normals)}) {
          require(has_shape(*array, {side, side, 3}), "an array that is not (S, S, 3)");
        }
        require(sigma >= 0 && sigma <= static_cast<double>(side), "sigma out of range");
        const float* source = xyz.data();
        float *target = smoothed.mutable_data(), *upright = normals.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::organised_normals(source, side, sigma, target, upright);
      },
      py::arg("xyz").noconvert(), py::arg("sigma"), py::arg("smoothed").noconvert(),
      py::arg("normals").noconvert());
  m.def(
      "stretch_picture",
      [](const Floats& image, const Triple& scale, const Triple& shift, Floats& picture) {
        require(is_image(image), "an image that is not (H, W, 3)");
        require(picture.ndim() == 3 && is_side(picture.shape(1)) &&
                    has_shape(picture, {3, picture.shape(1), picture.shape(1)}),
                "a picture that is not (3, R, R)");
        const auto height = image.shape(0), width = image.shape(1), size = picture.shape(1);
        const auto to_floats = [](const Triple& triple) {
          const auto [a, b, c] = triple;
          return std::array<float, 3>{static_cast<float>(a), static_cast<float>(b),
                                      static_cast<float>(c)};
        };
        const auto scales = to_floats(scale), shifts = to_floats(shift);
        const float* source = image.data();
        float* target = picture.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::stretch_picture(source, height, width, scales.data(), shifts.data(), size,
                                   target);
      },
      py::arg("image").noconvert(), py::arg("scale"), py::arg("shift"),
      py::arg("picture").noconvert());
  m.def(
      "mark_object",
      [](const Floats& xyz, const Border& padding, double plane_removal, Bytes& is_object) {
        const auto [top, bottom, left, right] = padding;
        require(is_image(xyz) && has_shape(is_object, {xyz.shape(0), xyz.shape(1)}),
                "xyz that is not (H, W, 3), or marks of other pixels");
        require(std::min({top, bottom, left, right}) >= 0 && top + bottom <= xyz.shape(0) &&
                    left + right <= xyz.shape(1),
                "a padding that is no border of xyz");
        const auto height = xyz.shape(0), width = xyz.shape(1);
        const float* source = xyz.data();
        uint8_t* marks = is_object.mutable_data();
        py::gil_scoped_release release;
        return mmad_fast::mark_object(source, height, width, Padding{top, bottom, left, right},
                                      plane_removal, marks);
      },
      py::arg("xyz").noconvert(), py::arg("padding"), py::arg("plane_removal"),
      py::arg("is_object").noconvert());
  m.def(
      "close_mask",
      [](Bytes& mask) {
        require(mask.ndim() == 2, "a mask that is not (H, W)");
        uint8_t* marks = mask.mutable_data();
        const auto height = mask.shape(0), width = mask.shape(1);
        py::gil_scoped_release release;
        mmad_fast::close_mask(marks, height, width);
      },
      py::arg("mask").noconvert());
  m.def(
      "scale_depth",
      [](const Floats& xyz, const Bytes& is_object, double low, double span, Floats& depth) {
        require(is_image(xyz) && has_shape(is_object, {xyz.shape(0), xyz.shape(1)}) &&
                    has_shape(depth, {xyz.shape(0), xyz.shape(1)}),
                "xyz that is not (H, W, 3), or marks or depth of other pixels");
        const auto height = xyz.shape(0), width = xyz.shape(1);
        const float* source = xyz.data();
        const uint8_t* marks = is_object.data();
        float* target = depth.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::scale_depth(source, marks, height, width, static_cast<float>(low),
                               static_cast<float>(span), target);
      },
      py::arg("xyz").noconvert(), py::arg("is_object").noconvert(), py::arg("low"), py::arg("span"),
      py::arg("depth").noconvert());
  m.def(
      "sobel_normals",
      [](const Floats& depth, const Bytes& is_object, int sobel_size, Floats& picture) {
        require(depth.ndim() == 2 && depth.size() > 0 &&
                    has_shape(is_object, {depth.shape(0), depth.shape(1)}) &&
                    has_shape(picture, {depth.shape(0), depth.shape(1), 3}),
                "depth that is not (H, W), or marks or a picture of other pixels");
        require(sobel_size == 3 || sobel_size == 5 || sobel_size == 7,
                "a filter that is not 3, 5 or 7 pixels a side");
        const auto height = depth.shape(0), width = depth.shape(1);
        const float* source = depth.data();
        const uint8_t* marks = is_object.data();
        float* target = picture.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::sobel_normals(source, marks, height, width, sobel_size, target);
      },
      py::arg("depth").noconvert(), py::arg("is_object").noconvert(), py::arg("sobel_size"),
      py::arg("picture").noconvert());
  m.def(
      "draw_depth",
      [](const Floats& xyz, double plane_removal, Floats& picture, Bytes& foreground,
         Bytes& is_object) {
        require(is_image(xyz) && xyz.shape(0) >= 2 && xyz.shape(1) >= 2,
                "xyz that is not (H, W, 3) of at least 2 x 2 pixels");
        const auto height = xyz.shape(0), width = xyz.shape(1), size = picture.shape(0);
        require(is_side(size) && has_shape(picture, {size, size}) &&
                    has_shape(foreground, {size, size}) && has_shape(is_object, {height, width}),
                "a picture that is not (S, S), or marks of other pixels than those of xyz");
        const float* source = xyz.data();
        float* target = picture.mutable_data();
        uint8_t* mask = foreground.mutable_data();
        uint8_t* marks = is_object.mutable_data();
        py::gil_scoped_release release;
        const mmad_fast::DepthPicture drawn =
            mmad_fast::draw_depth(source, height, width, plane_removal, size, target, mask, marks);
        return std::make_tuple(drawn.num_pixels, drawn.has_plane);
      },
      py::arg("xyz").noconvert(), py::arg("plane_removal"), py::arg("picture").noconvert(),
      py::arg("foreground").noconvert(), py::arg("is_object").noconvert());
  m.def(
      "density_clusters",
      [](const Floats& points, double radius, int64_t min_points, Labels& labels) {
        require(points.size() == 3 * labels.size(), "points and labels of different sizes");
        require_neighborhood(radius, min_points);
        const float* source = points.data();
        int32_t* target = labels.mutable_data();
        const int64_t num_points = labels.size();
        py::gil_scoped_release release;
        mmad_fast::density_clusters(source, num_points, radius, min_points, target);
      },
      py::arg("points").noconvert(), py::arg("radius"), py::arg("min_points"),
      py::arg("labels").noconvert());
}

// points (N, 3) float32; a PointIndex keeps the array alive.
void bind_point_index(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  py::class_<mmad_fast::PointIndex>(m, "PointIndex")
      .def(py::init([](const Floats& points) {
             require(has_shape(points, {points.size() / 3, 3}), "points that are not (N, 3)");
             const float* source = points.data();
             const int64_t num_points = points.size() / 3;
             py::gil_scoped_release release;
             return mmad_fast::build_point_index(source, num_points);
           }),
           py::arg("points").noconvert(), py::keep_alive<1, 2>());
}

// farthest_point_sampling: indices (G,) int64 is written.
void bind_farthest_point_sampling(py::module_& m) {
  using Indices = py::array_t<int64_t, py::array::c_style>;
  m.def(
      "farthest_point_sampling",
      [](const mmad_fast::PointIndex& index, int64_t start_index, bool skip_near_origin,
         Indices& indices) {
        require(start_index >= 0 && start_index < index.num_points, "a start index out of range");
        int64_t* target = indices.mutable_data();
        const int64_t num_samples = indices.size();
        py::gil_scoped_release release;
        mmad_fast::farthest_point_sampling(index, num_samples, start_index, skip_near_origin,
                                           target);
      },
      py::arg("index"), py::arg("start_index"), py::arg("skip_near_origin"),
      py::arg("indices").noconvert());
}

// knn_grouping: center_indices (G,) int64; indices (G, K) int64 and groups (G, K, 3) float32 are
// written.
void bind_knn_grouping(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Indices = py::array_t<int64_t, py::array::c_style>;
  m.def(
      "knn_grouping",
      [](const mmad_fast::PointIndex& index, const Indices& center_indices, int64_t num_neighbors,
         Indices& indices, Floats& groups) {
        require(num_neighbors >= 1 && num_neighbors <= index.num_points,
                "a number of neighbours out of range");
        require(has_shape(indices, {center_indices.size(), num_neighbors}) &&
                    has_shape(groups, {center_indices.size(), num_neighbors, 3}),
                "results that are not (G, K) and (G, K, 3)");
        require_indices(center_indices.data(), center_indices.size(), index.num_points,
                        "a centre out of range");
        const int64_t* centers = center_indices.data();
        int64_t* index_target = indices.mutable_data();
        float* group_target = groups.mutable_data();
        const int64_t num_centers = center_indices.size();
        py::gil_scoped_release release;
        mmad_fast::knn_grouping(index, centers, num_centers, num_neighbors, index_target,
                                group_target);
      },
      py::arg("index"), py::arg("center_indices").noconvert(), py::arg("num_neighbors"),
      py::arg("indices").noconvert(), py::arg("groups").noconvert());
}

// point_neighbors: indices (N, K) int32, squared_distances (N, K) float32 and counts (N,) int32;
// the search writes them. surface_normals: normals (N, 3) float64 are written. fpfh: features (N,
// 33) float32 are written.
void bind_point_neighbors(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Doubles = py::array_t<double, py::array::c_style>;
  using Indices = py::array_t<int32_t, py::array::c_style>;
  const auto require_rows = [](const Indices& indices, const Floats& squared_distances,
                               const Indices& counts, float squared_radius, int64_t num_points) {
    require(num_points < std::numeric_limits<int32_t>::max() && indices.ndim() == 2 &&
                has_shape(squared_distances, {num_points, indices.shape(1)}) &&
                has_shape(indices, {num_points, indices.shape(1)}) &&
                has_shape(counts, {num_points}),
            "neighbours that are not (N, K), (N, K) and (N,)");
    require(squared_radius > 0, "a radius that is not positive");
  };
  const auto rows_of = [require_rows](const Floats& points, const Indices& indices,
                                      const Floats& squared_distances, const Indices& counts,
                                      int64_t max_neighbors, float squared_radius) {
    const int64_t num_points = points.size() / 3;
    require(has_shape(points, {num_points, 3}), "points that are not (N, 3)");
    require_rows(indices, squared_distances, counts, squared_radius, num_points);
    require(max_neighbors >= 1 && max_neighbors <= std::numeric_limits<int32_t>::max(),
            "a number of neighbours out of range");
    const mmad_fast::NeighborRows rows{indices.data(),
                                       squared_distances.data(),
                                       counts.data(),
                                       indices.shape(1),
                                       static_cast<int32_t>(max_neighbors),
                                       squared_radius};
    bool in_range = true;
    for (int64_t i = 0; i < num_points; ++i) {
      const int32_t* row = rows.indices + i * rows.row_length;
      in_range &= rows.counts[i] >= 0 && rows.counts[i] <= rows.row_length;
      for (int64_t k = 0; in_range && k < rows.counts[i]; ++k) {
        in_range = row[k] >= 0 && row[k] < num_points;
      }
    }
    require(in_range, "a neighbour out of range");
    return rows;
  };
  m.def(
      "point_neighbors",
      [require_rows](const mmad_fast::PointIndex& index, float squared_radius, Indices& indices,
                     Floats& squared_distances, Indices& counts) {
        require_rows(indices, squared_distances, counts, squared_radius, index.num_points);
        const int64_t row_length = indices.shape(1);
        require(row_length <= index.num_points && (row_length >= 1 || index.num_points == 0),
                "a number of neighbours out of range");
        int32_t *index_target = indices.mutable_data(), *count_target = counts.mutable_data();
        float* distance_target = squared_distances.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::find_point_neighbors(index, row_length, squared_radius, index_target,
                                        distance_target, count_target);
      },
      py::arg("index"), py::arg("squared_radius"), py::arg("indices").noconvert(),
      py::arg("squared_distances").noconvert(), py::arg("counts").noconvert());
  m.def(
      "surface_normals",
      [rows_of](const Floats& points, const Indices& indices, const Floats& squared_distances,
                const Indices& counts, int64_t max_neighbors, float squared_radius,
                bool faces_camera, Doubles& normals) {
        const mmad_fast::NeighborRows rows =
            rows_of(points, indices, squared_distances, counts, max_neighbors, squared_radius);
        const int64_t num_points = points.shape(0);
        require(has_shape(normals, {num_points, 3}), "normals that are not (N, 3)");
        const float* source = points.data();
        double* target = normals.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::surface_normals(source, num_points, rows, faces_camera, target);
      },
      py::arg("points").noconvert(), py::arg("indices").noconvert(),
      py::arg("squared_distances").noconvert(), py::arg("counts").noconvert(),
      py::arg("max_neighbors"), py::arg("squared_radius"), py::arg("faces_camera"),
      py::arg("normals").noconvert());
  m.def(
      "fpfh",
      [rows_of](const Floats& points, const Doubles& normals, const Indices& indices,
                const Floats& squared_distances, const Indices& counts, int64_t max_neighbors,
                float squared_radius, Floats& features) {
        const mmad_fast::NeighborRows rows =
            rows_of(points, indices, squared_distances, counts, max_neighbors, squared_radius);
        const int64_t num_points = points.shape(0);
        require(has_shape(normals, {num_points, 3}) &&
                    has_shape(features, {num_points, mmad_fast::kNumChannels}),
                "normals that are not (N, 3), or features that are not (N, 33)");
        const float* source = points.data();
        const double* normal_source = normals.data();
        float* target = features.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::fpfh(source, normal_source, num_points, rows, target);
      },
      py::arg("points").noconvert(), py::arg("normals").noconvert(), py::arg("indices").noconvert(),
      py::arg("squared_distances").noconvert(), py::arg("counts").noconvert(),
      py::arg("max_neighbors"), py::arg("squared_radius"), py::arg("features").noconvert());
}

// targets and restored: of each level (C, H, W) float32; map (S, S) float32 is written.
void bind_cosine_maps(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  m.def(
      "cosine_maps",
      [](const std::vector<Floats>& targets, const std::vector<Floats>& restored, double sigma,
         bool align_corners, Floats& map) {
        require(!targets.empty() && targets.size() == restored.size(),
                "no levels, or not as many restored maps as targets");
        std::vector<mmad_fast::CosineLevel> levels;
        for (std::size_t level = 0; level < targets.size(); ++level) {
          const Floats &target = targets[level], &other = restored[level];
          require(target.ndim() == 3 && target.size() > 0 && is_side(target.shape(1)) &&
                      is_side(target.shape(2)) &&
                      has_shape(other, {target.shape(0), target.shape(1), target.shape(2)}),
                  "maps that are not (C, H, W), or of different shapes");
          levels.push_back(
              {target.data(), other.data(), target.shape(0), target.shape(1), target.shape(2)});
        }
        require(map.ndim() == 2 && is_side(map.shape(0)) && map.shape(0) == map.shape(1),
                "a result that is not (S, S)");
        require(sigma >= 0 && sigma <= mmad_fast::kMaxSigma, "a sigma out of range");
        float* result = map.mutable_data();
        const int64_t size = map.shape(0);
        py::gil_scoped_release release;
        mmad_fast::cosine_maps(levels, size, sigma, align_corners, result);
      },
      py::arg("targets").noconvert(), py::arg("restored").noconvert(), py::arg("sigma"),
      py::arg("align_corners"), py::arg("map").noconvert());
}

// inverse_distance_interpolation: centers (G, 3) float32; indices (N, 3) int64 and weights (N, 3)
// float32 are written, or from features (G, C) the dense (N, C) float32. The pooled rows come back
// as (pixel_indices, (offsets, columns, values)).
void bind_inverse_distance_interpolation(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Indices = py::array_t<int64_t, py::array::c_style>;
  const auto is_centers = [](const Floats& centers) {
    return is_matrix(centers) && centers.shape(0) >= 3 && centers.shape(1) == 3;
  };
  m.def(
      "inverse_distance_weights",
      [is_centers](const mmad_fast::PointIndex& index, const Floats& centers, Indices& indices,
                   Floats& weights) {
        require(is_centers(centers), "centres that are not (G, 3) with G >= 3");
        require(
            has_shape(indices, {index.num_points, 3}) && has_shape(weights, {index.num_points, 3}),
            "results that are not (N, 3)");
        const float* center_source = centers.data();
        int64_t* index_target = indices.mutable_data();
        float* weight_target = weights.mutable_data();
        const int64_t num_centers = centers.size() / 3;
        py::gil_scoped_release release;
        mmad_fast::inverse_distance_weights(index, center_source, num_centers, index_target,
                                            weight_target);
      },
      py::arg("index"), py::arg("centers").noconvert(), py::arg("indices").noconvert(),
      py::arg("weights").noconvert());
  m.def(
      "inverse_distance_interpolation",
      [is_centers](const mmad_fast::PointIndex& index, const Floats& centers,
                   const Floats& features, Floats& dense) {
        require(is_centers(centers), "centres that are not (G, 3) with G >= 3");
        require(is_matrix(features) && features.shape(0) == centers.shape(0) &&
                    has_shape(dense, {index.num_points, features.shape(1)}),
                "features that are not (G, C), or a result that is not (N, C)");
        const float *center_source = centers.data(), *feature_source = features.data();
        float* target = dense.mutable_data();
        const int64_t num_centers = centers.shape(0), num_channels = features.shape(1);
        py::gil_scoped_release release;
        mmad_fast::inverse_distance_interpolation(index, center_source, num_centers, feature_source,
                                                  num_channels, target);
      },
      py::arg("index"), py::arg("centers").noconvert(), py::arg("features").noconvert(),
      py::arg("dense").noconvert());
  m.def(
      "pooled_interpolation_rows",
      [](const Indices& indices, const Floats& weights, const Indices& pixel_indices,
         int64_t num_centers, int64_t grid_size, int64_t output_size) {
        require(grid_size >= 3 && grid_size <= kMaxSide && is_side(output_size),
                "a side of a grid out of range");
        require(num_centers >= 1 && num_centers <= kMaxCenters, "too many centres");
        require(has_shape(indices, {pixel_indices.size(), 3}) &&
                    has_shape(weights, {pixel_indices.size(), 3}),
                "indices and weights that are not (N, 3)");
        require_indices(indices.data(), indices.size(), num_centers, "a centre out of range");
        require_indices(pixel_indices.data(), pixel_indices.size(), grid_size * grid_size,
                        "a pixel out of range");
        const int64_t *index_source = indices.data(), *pixel_source = pixel_indices.data();
        const float* weight_source = weights.data();
        const int64_t num_points = pixel_indices.size();
        mmad_fast::PooledRows rows;
        {
          py::gil_scoped_release release;
          rows =
              mmad_fast::pooled_interpolation_rows(index_source, weight_source, pixel_source,
                                                   num_points, num_centers, grid_size, output_size);
        }
        return py::make_tuple(array_of(std::move(rows.pixel_indices)),
                              arrays_of(std::move(rows.rows)));
      },
      py::arg("indices").noconvert(), py::arg("weights").noconvert(),
      py::arg("pixel_indices").noconvert(), py::arg("num_centers"), py::arg("grid_size"),
      py::arg("output_size"));
}

// Shared by the ops below and tested by itself: a (m, k), b (n, k) float32; c (m, n) = a b^T is
// written.
void bind_gemm(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using mmad_fast::InstructionSet;
  py::enum_<InstructionSet>(m, "InstructionSet")
      .value("BASELINE", InstructionSet::kBaseline)
      .value("AVX2", InstructionSet::kAvx2)
      .value("AVX512", InstructionSet::kAvx512);
  m.def("has_instruction_set", &mmad_fast::has_instruction_set, py::arg("instruction_set"));
  m.def("best_instruction_set", &mmad_fast::best_instruction_set);
  py::class_<mmad_fast::PackedMatrix>(m, "PackedMatrix")
      .def(py::init([](const Floats& b, InstructionSet instruction_set) {
             require(is_matrix(b), "a matrix that is not (n, k)");
             require(mmad_fast::has_instruction_set(instruction_set), "instructions it lacks");
             const float* source = b.data();
             const int64_t n = b.shape(0), k = b.shape(1);
             py::gil_scoped_release release;
             return mmad_fast::pack_matrix(source, n, k, k, instruction_set);
           }),
           py::arg("b").noconvert(), py::arg("instruction_set"));
  m.def(
      "gemm",
      [](const Floats& a, const mmad_fast::PackedMatrix& b, Floats& c) {
        require(is_matrix(a) && a.shape(1) == b.k && has_shape(c, {a.shape(0), b.n}),
                "matrices that do not fit one another");
        const float* source = a.data();
        float* target = c.mutable_data();
        const int64_t rows = a.shape(0);
        py::gil_scoped_release release;
        mmad_fast::gemm(source, rows, b.k, b, target, b.n);
      },
      py::arg("a").noconvert(), py::arg("b"), py::arg("c").noconvert());
}

// nearest_neighbor_scoring: rows (M, C) float32, or uint16 that hold half precision; mean (C,) and
// basis (C, R) float64, R may be 0; queries (Q, C) float32; distances (Q,) float32 and indices (Q,)
// int64 are written. A Bank keeps the array of its rows alive.
void bind_nearest_neighbor_scoring(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Halves = py::array_t<uint16_t, py::array::c_style>;
  using Doubles = py::array_t<double, py::array::c_style>;
  using Indices = py::array_t<int64_t, py::array::c_style>;
  const auto prepare = [](mmad_fast::BankRows rows, const Doubles& mean, const Doubles& basis) {
    require(rows.num_rows >= 1 && rows.width >= 1 && has_shape(mean, {rows.width}) &&
                is_matrix(basis) && basis.shape(0) == rows.width && basis.shape(1) <= rows.width,
            "a bank without rows, or a projection of another width");
    const double *mean_source = mean.data(), *basis_source = basis.data();
    const int64_t rank = basis.shape(1);
    py::gil_scoped_release release;
    return mmad_fast::prepare_bank(std::move(rows), mean_source, basis_source, rank);
  };
  py::class_<mmad_fast::Bank>(m, "Bank")
      .def(py::init([prepare](const Floats& rows, const Doubles& mean, const Doubles& basis) {
             require(is_matrix(rows), "a bank that is not (M, C)");
             return prepare({rows.data(), nullptr, rows.shape(0), rows.shape(1), {}}, mean, basis);
           }),
           py::arg("rows").noconvert(), py::arg("mean").noconvert(), py::arg("basis").noconvert(),
           py::keep_alive<1, 2>())
      .def(py::init([prepare](const Halves& rows, const Doubles& mean, const Doubles& basis) {
             require(is_matrix(rows), "a bank that is not (M, C)");
             return prepare({nullptr, rows.data(), rows.shape(0), rows.shape(1), {}}, mean, basis);
           }),
           py::arg("rows").noconvert(), py::arg("mean").noconvert(), py::arg("basis").noconvert(),
           py::keep_alive<1, 2>());
  py::class_<mmad_fast::ScoringStatistics>(m, "ScoringStatistics")
      .def_readonly("measured_rows", &mmad_fast::ScoringStatistics::measured_rows)
      .def_readonly("opened_groups", &mmad_fast::ScoringStatistics::opened_groups)
      .def_readonly("plain_queries", &mmad_fast::ScoringStatistics::plain_queries);
  m.def(
      "nearest_neighbor_scoring",
      [](const Floats& queries, const mmad_fast::Bank& bank, Floats& distances, Indices& indices) {
        require(has_shape(queries, {distances.size(), bank.rows.width}) &&
                    indices.size() == distances.size(),
                "queries that are not (Q, C), or results that are not (Q,)");
        const float* source = queries.data();
        float* distance_target = distances.mutable_data();
        int64_t* index_target = indices.mutable_data();
        const int64_t num_queries = distances.size();
        py::gil_scoped_release release;
        return mmad_fast::nearest_neighbor_scoring(source, num_queries, bank, distance_target,
                                                   index_target);
      },
      py::arg("queries").noconvert(), py::arg("bank"), py::arg("distances").noconvert(),
      py::arg("indices").noconvert());
  m.def(
      "nearest_rows",
      [](const Floats& query, const mmad_fast::Bank& bank, int64_t exclude, Floats& distances,
         Indices& indices) {
        require(has_shape(query, {bank.rows.width}) && indices.size() == distances.size() &&
                    distances.size() <= bank.rows.num_rows && exclude >= -1 &&
                    exclude < bank.rows.num_rows,
                "a query that is not (C,), more results than rows, or no such row");
        const float* source = query.data();
        float* distance_target = distances.mutable_data();
        int64_t* index_target = indices.mutable_data();
        const int64_t count = distances.size();
        py::gil_scoped_release release;
        return mmad_fast::nearest_rows(source, bank, count, exclude, distance_target, index_target);
      },
      py::arg("query").noconvert(), py::arg("bank"), py::arg("exclude"),
      py::arg("distances").noconvert(), py::arg("indices").noconvert());
}

// k_center_greedy: rows (N, D) float32; mean (D,) and basis (D, R) float64, R may be 0; indices
// int64 are written. `report` is called with the number of rows selected so far; a
// KeyboardInterrupt that is pending then ends the selection.
void bind_k_center_greedy(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Doubles = py::array_t<double, py::array::c_style>;
  using Indices = py::array_t<int64_t, py::array::c_style>;
  using Statistics = mmad_fast::SelectionStatistics;
  py::class_<Statistics>(m, "SelectionStatistics")
      .def_readonly("num_selected", &Statistics::num_selected)
      .def_readonly("phases", &Statistics::phases)
      .def_readonly("bounded_pairs", &Statistics::bounded_pairs)
      .def_readonly("stepped_pairs", &Statistics::stepped_pairs)
      .def_readonly("measured_pairs", &Statistics::measured_pairs);
  m.def(
      "k_center_greedy",
      [](const Floats& rows, const Doubles& mean, const Doubles& basis, int64_t start,
         Indices& indices, const py::function& report) {
        require(is_matrix(rows) && rows.size() > 0 && start >= 0 && start < rows.shape(0) &&
                    indices.size() >= 1,
                "no rows, a start out of range, or no samples");
        require(has_shape(mean, {rows.shape(1)}) && is_matrix(basis) &&
                    basis.shape(0) == rows.shape(1) && basis.shape(1) <= rows.shape(1),
                "a projection of another width");
        const float* source = rows.data();
        const int64_t num_rows = rows.shape(0), width = rows.shape(1);
        const mmad_fast::SelectionProjection projection{mean.data(), basis.data(), basis.shape(1)};
        int64_t* target = indices.mutable_data();
        const int64_t num_samples = indices.size();
        const auto report_and_check_signals = [&](int64_t num_selected) {
          const py::gil_scoped_acquire acquire;
          report(num_selected);
          if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        };
        py::gil_scoped_release release;
        return mmad_fast::k_center_greedy(source, num_rows, width, projection, start, num_samples,
                                          target, report_and_check_signals);
      },
      py::arg("rows").noconvert(), py::arg("mean").noconvert(), py::arg("basis").noconvert(),
      py::arg("start"), py::arg("indices").noconvert(), py::arg("report"));
}

// Rows as offsets (P + 1,) int64, columns int32, values float32; features (T, C) float32; dense
// (P, C) is written.
void bind_sparse_rows(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Offsets = py::array_t<int64_t, py::array::c_style>;
  using Columns = py::array_t<int32_t, py::array::c_style>;
  m.def(
      "bilinear_rows",
      [](const Offsets& pixel_indices, int64_t token_grid, int64_t output_size) {
        require(is_side(token_grid) && is_side(output_size), "a side of a grid out of range");
        require_indices(pixel_indices.data(), pixel_indices.size(), output_size * output_size,
                        "a pixel out of range");
        const int64_t* source = pixel_indices.data();
        const int64_t num_pixels = pixel_indices.size();
        mmad_fast::SparseRows rows;
        {
          py::gil_scoped_release release;
          rows = mmad_fast::bilinear_rows(source, num_pixels, token_grid, output_size);
        }
        return arrays_of(std::move(rows));
      },
      py::arg("pixel_indices").noconvert(), py::arg("token_grid"), py::arg("output_size"));
  m.def(
      "select_rows",
      [](const Offsets& offsets, const Columns& columns, const Floats& values,
         const Offsets& chosen) {
        const auto rows = view_of(offsets, columns, values, int64_t{1} << 31);
        require_indices(chosen.data(), chosen.size(), rows.num_rows, "a row out of range");
        const int64_t* source = chosen.data();
        const int64_t count = chosen.size();
        mmad_fast::SparseRows selected;
        {
          py::gil_scoped_release release;
          selected = mmad_fast::select_rows(rows, source, count);
        }
        return arrays_of(std::move(selected));
      },
      py::arg("offsets").noconvert(), py::arg("columns").noconvert(), py::arg("values").noconvert(),
      py::arg("chosen").noconvert());
  m.def(
      "apply_sparse_rows",
      [](const Offsets& offsets, const Columns& columns, const Floats& values,
         const Floats& features, Floats& dense) {
        require(is_matrix(features), "features that are not (T, C)");
        const auto rows = view_of(offsets, columns, values, features.shape(0));
        require(has_shape(dense, {rows.num_rows, features.shape(1)}),
                "a result that is not (P, C)");
        const float* source = features.data();
        float* target = dense.mutable_data();
        const int64_t width = dense.shape(1);
        py::gil_scoped_release release;
        mmad_fast::apply_sparse_rows(rows, source, width, target);
      },
      py::arg("offsets").noconvert(), py::arg("columns").noconvert(), py::arg("values").noconvert(),
      py::arg("features").noconvert(), py::arg("dense").noconvert());
}

// pixel_mapping: features (T, C) float32, rows as offsets (P + 1,) int64, columns int32, values
// float32; psi (P,) float32 is written.
void bind_pixel_mapping(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Offsets = py::array_t<int64_t, py::array::c_style>;
  using Columns = py::array_t<int32_t, py::array::c_style>;
  py::class_<mmad_fast::PackedNetwork>(m, "PackedNetwork")
      .def(py::init(
               [](const std::vector<std::pair<Floats, Floats>>& layers, const Floats& rotation) {
                 std::vector<mmad_fast::LinearView> views;
                 require(layers.size() >= 2, "a network of fewer than 2 layers");
                 for (const auto& [weight, bias] : layers) {
                   require(is_matrix(weight) && weight.size() > 0 &&
                               has_shape(bias, {weight.shape(0)}) &&
                               (views.empty() || weight.shape(1) == views.back().out),
                           "layers that do not fit one another");
                   views.push_back({weight.data(), bias.data(), weight.shape(0), weight.shape(1)});
                 }
                 require(has_shape(rotation, {views.back().out, views.back().out}),
                         "a rotation of another width than the last layer");
                 const float* basis = rotation.data();
                 py::gil_scoped_release release;
                 return mmad_fast::pack_network(views, basis);
               }),
           py::arg("layers"), py::arg("rotation").noconvert());
  m.def(
      "pixel_mapping",
      [](const Floats& source_features, const Offsets& source_offsets,
         const Columns& source_columns, const Floats& source_values, const Floats& target_features,
         const Offsets& target_offsets, const Columns& target_columns, const Floats& target_values,
         const mmad_fast::PackedNetwork& network, Floats& psi) {
        require(is_matrix(source_features) && is_matrix(target_features) &&
                    source_features.shape(1) == network.weights.front().k &&
                    target_features.shape(1) == network.rotation.n,
                "features of other widths than the network's");
        const float *source = source_features.data(), *target = target_features.data();
        const int64_t num_sources = source_features.shape(0);
        const int64_t num_targets = target_features.shape(0);
        const auto source_rows =
            view_of(source_offsets, source_columns, source_values, num_sources);
        const auto target_rows =
            view_of(target_offsets, target_columns, target_values, num_targets);
        require(source_rows.num_rows == psi.size() && target_rows.num_rows == psi.size(),
                "rows and a result of different numbers of pixels");
        float* result = psi.mutable_data();
        py::gil_scoped_release release;
        mmad_fast::pixel_mapping(source, num_sources, source_rows, target, num_targets, target_rows,
                                 network, result);
      },
      py::arg("source_features").noconvert(), py::arg("source_offsets").noconvert(),
      py::arg("source_columns").noconvert(), py::arg("source_values").noconvert(),
      py::arg("target_features").noconvert(), py::arg("target_offsets").noconvert(),
      py::arg("target_columns").noconvert(), py::arg("target_values").noconvert(),
      py::arg("network"), py::arg("psi").noconvert());
  m.def(
      "gelu",
      [](const Floats& values, Floats& result) {
        require(values.size() == result.size(), "arrays of different sizes");
        const float* source = values.data();
        float* target = result.mutable_data();
        const int64_t count = values.size();
        py::gil_scoped_release release;
        mmad_fast::gelu(source, count, target);
      },
      py::arg("values").noconvert(), py::arg("result").noconvert());
}

// The arrays of EmbedderView, in its order; the last four may be empty together.
void require_embedder(const std::vector<py::array_t<float, py::array::c_style>>& arrays,
                      mmad_fast::InstructionSet instruction_set) {
  using namespace mmad_fast;
  constexpr int64_t kFirst = kHiddenChannels, kWide = kWideChannels, kToken = kTokenChannels;
  const int64_t sizes[] = {3 * kFirst,
                           kFirst,
                           kLocalChannels * kFirst,
                           kWide * kFirst,
                           kWide * kLocalChannels,
                           kWide,
                           kToken * kWide,
                           kToken,
                           kFirst,
                           kFirst,
                           kWide,
                           kWide};
  require(has_instruction_set(instruction_set), "instructions it lacks");
  require(arrays.size() == std::size(sizes), "another number of arrays than an embedder's 12");
  const bool has_norms = arrays.back().size() > 0;
  for (std::size_t i = 0; i < arrays.size(); ++i)
    require(arrays[i].size() == (i < 8 || has_norms ? sizes[i] : 0),
            "an array of another size than the embedder's");
}

// point_embedding: groups (G, K, 3) float32; tokens (G, 384) float32 are written. The embedder's
// arrays are in the order of EmbedderView, the last four empty where no statistics are taken.
void bind_point_embedding(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using mmad_fast::InstructionSet;
  py::class_<mmad_fast::PackedEmbedder>(m, "PackedEmbedder")
      .def(py::init([](const std::vector<Floats>& arrays, InstructionSet instruction_set) {
             require_embedder(arrays, instruction_set);
             const auto at = [&](std::size_t i) {
               return arrays.at(i).size() == 0 ? nullptr : arrays[i].data();
             };
             const mmad_fast::EmbedderView view{at(0), at(1), at(2), at(3), at(4),  at(5),
                                                at(6), at(7), at(8), at(9), at(10), at(11)};
             py::gil_scoped_release release;
             return mmad_fast::pack_embedder(view, instruction_set);
           }),
           py::arg("arrays"), py::arg("instruction_set"));
  m.def(
      "point_embedding",
      [](const Floats& groups, const mmad_fast::PackedEmbedder& embedder, Floats& tokens) {
        require(groups.ndim() == 3 && groups.shape(1) >= 1 && groups.shape(2) == 3 &&
                    has_shape(tokens, {groups.shape(0), mmad_fast::kTokenChannels}),
                "groups that are not (G, K, 3), or tokens that are not (G, 384)");
        const float* source = groups.data();
        float* target = tokens.mutable_data();
        const int64_t num_groups = groups.shape(0), group_size = groups.shape(1);
        py::gil_scoped_release release;
        return mmad_fast::point_embedding(source, num_groups, group_size, embedder, target);
      },
      py::arg("groups").noconvert(), py::arg("embedder"), py::arg("tokens").noconvert());
}

// anomaly_map: psi (P,) float32, pixel_indices (P,) int64; combined (P,) and map (S, S) float32 are
// written. The representatives come back as (positions, number).
void bind_anomaly_map(py::module_& m) {
  using Floats = py::array_t<float, py::array::c_style>;
  using Indices = py::array_t<int64_t, py::array::c_style>;
  m.def(
      "aggregate",
      [](const std::string& aggregation, const Floats& psi_2d, const Floats& psi_3d,
         Floats& combined) {
        const bool reads_first = aggregation != "psi_3d", reads_second = aggregation != "psi_2d";
        require((!reads_first || psi_2d.size() == combined.size()) &&
                    (!reads_second || psi_3d.size() == combined.size()),
                "arrays of different sizes");
        const float *first = psi_2d.data(), *second = psi_3d.data();
        float* target = combined.mutable_data();
        const int64_t count = combined.size();
        py::gil_scoped_release release;
        mmad_fast::aggregate(aggregation, first, second, count, target);
      },
      py::arg("aggregation"), py::arg("psi_2d").noconvert(), py::arg("psi_3d").noconvert(),
      py::arg("combined").noconvert());
  m.def(
      "representative_pixels",
      [](const Indices& pixel_indices, int64_t grid_size, int64_t stride) {
        require(is_side(grid_size) && is_side(stride), "a side of a grid out of range");
        require_indices(pixel_indices.data(), pixel_indices.size(), grid_size * grid_size,
                        "a pixel out of range");
        const int64_t* source = pixel_indices.data();
        const int64_t num_pixels = pixel_indices.size();
        mmad_fast::RepresentativePixels pixels;
        {
          py::gil_scoped_release release;
          pixels = mmad_fast::representative_pixels(source, num_pixels, grid_size, stride);
        }
        return py::make_tuple(array_of(std::move(pixels.positions)),
                              array_of(std::move(pixels.number)));
      },
      py::arg("pixel_indices").noconvert(), py::arg("grid_size"), py::arg("stride"));
  m.def(
      "smooth_map",
      [](const std::string& smoothing, Floats& map) {
        require(is_matrix(map) && map.shape(0) == map.shape(1) && is_side(map.shape(0)),
                "a map that is not (S, S)");
        float* target = map.mutable_data();
        const int64_t side = map.shape(0);
        py::gil_scoped_release release;
        mmad_fast::smooth_map(smoothing, side, target);
      },
      py::arg("smoothing"), py::arg("map").noconvert());
  m.def(
      "mean_of_nonzero",
      [](const Floats& values) {
        const float* source = values.data();
        const int64_t count = values.size();
        py::gil_scoped_release release;
        return mmad_fast::mean_of_nonzero(source, count);
      },
      py::arg("values").noconvert());
}

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "CPU kernels of mmad-fast";
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::invalid_argument& refusal) {
      const auto kind = py::module_::import("mmad_fast.errors").attr("InvalidInputError");
      PyErr_SetString(kind.ptr(), refusal.what());
    }
  });
  m.def("num_threads", &mmad_fast::num_threads);
  m.def("set_num_threads", &mmad_fast::set_num_threads, py::arg("count"));
  m.def("cgroup_cores", &mmad_fast::cgroup_cores, py::arg("root"));
  m.attr("MAX_SIDE") = kMaxSide;
  m.attr("MAX_CENTERS") = kMaxCenters;
  bind_scan(m);
  bind_preprocess(m);
  bind_point_index(m);
  bind_farthest_point_sampling(m);
  bind_knn_grouping(m);
  bind_point_neighbors(m);
  bind_inverse_distance_interpolation(m);
  bind_gemm(m);
  bind_nearest_neighbor_scoring(m);
  bind_k_center_greedy(m);
  bind_sparse_rows(m);
  bind_anomaly_map(m);
  bind_pixel_mapping(m);
  bind_cosine_maps(m);
  bind_point_embedding(m);
}
