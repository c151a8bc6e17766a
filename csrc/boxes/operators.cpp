// The operators on boxes and proposals. Arguments are checked in detector/ops/proposals.py, whose functions say
// what they return; the checks here only protect memory.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "boxes/filter.h"
#include "boxes/overlaps.h"
#include "boxes/stored.h"

namespace detector::boxes {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxBoxes = int64_t{1} << 28;  // of an image; rows are counted in 32 bits

Place place_of(const int64_t* numbers) {
  const Place place{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]};
  STD_TORCH_CHECK(place.count >= 0 && place.count <= kMaxBoxes, "an image with ", place.count, " boxes");
  return place;
}

template <class T>
const T* checked(const Tensor& tensor, const char* name, ScalarType type, int64_t rows, int64_t columns) {
  const bool fits = tensor.scalar_type() == type && tensor.is_contiguous() && tensor.size(0) == rows &&
                    (columns == 0 ? tensor.dim() == 1 : tensor.dim() == 2 && tensor.size(1) == columns);
  STD_TORCH_CHECK(fits, name, " has another type or shape");
  return tensor.const_data_ptr<T>();
}

template <class T>
Tensor tensor_of(std::vector<int64_t> shape, ScalarType type, const T* data) {
  Tensor out = torch::stable::empty(shape, type);
  std::copy_n(data, out.numel(), out.mutable_data_ptr<T>());
  return out;
}

// The kept boxes of `filter`, and their scores, none where there are no scores.
std::tuple<Tensor, Tensor> kept(const Filter& filter, const float* scores) {
  const int64_t count = static_cast<int64_t>(filter.rows().size());
  Tensor ranks = torch::stable::empty({scores == nullptr ? 0 : count}, ScalarType::Float);
  float* to = ranks.mutable_data_ptr<float>();
  for (int64_t i = 0; i < ranks.numel(); ++i) to[i] = scores[filter.rows()[i]];
  return {tensor_of({count, 4}, ScalarType::Float, filter.boxes().data()), ranks};
}

std::tuple<Tensor, Tensor> filter_proposals(const Tensor& boxes, std::optional<Tensor> scores, int64_t height,
                                            int64_t width, double min_size, int64_t top_k, bool deduplicate) {
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(count <= kMaxBoxes, "an image with ", count, " boxes");
  const float* from = checked<float>(boxes, "boxes", ScalarType::Float, count, 4);
  const float* ranks = scores ? checked<float>(*scores, "scores", ScalarType::Float, count, 0) : nullptr;
  Filter filter;
  filter.run(from, ranks, count, static_cast<float>(height), static_cast<float>(width),
             {static_cast<float>(min_size), top_k, deduplicate});
  return kept(filter, ranks);
}

std::tuple<Tensor, Tensor, bool> read_proposals(std::vector<int64_t> numbers, int64_t height, int64_t width,
                                                double min_size, int64_t top_k, bool deduplicate) {
  STD_TORCH_CHECK(numbers.size() == 6, "a place has six numbers");
  Stored stored;
  Filter filter;
  const bool sound = stored.read(place_of(numbers.data()));
  if (sound)
    filter.run(stored.boxes(), stored.scores(), stored.count(), static_cast<float>(height),
               static_cast<float>(width), {static_cast<float>(min_size), top_k, deduplicate});
  auto [boxes, scores] = kept(filter, sound ? stored.scores() : nullptr);
  return {boxes, scores, sound};
}

// N images with their objects; `place`, `size` and `offset` are arrays of rows for them.
struct Images {
  int64_t count;
  const int64_t* places;   // (N, 6)
  const int32_t* sizes;    // (N, 2), height and width
  const float* objects;    // (G, 4)
  const int64_t* offsets;  // (N + 1): the objects of image i are offsets[i] to offsets[i + 1]

  Images(const Tensor& places_, const Tensor& sizes_, const Tensor& objects_, const Tensor& offsets_)
      : count(places_.size(0)),
        places(checked<int64_t>(places_, "places", ScalarType::Long, count, 6)),
        sizes(checked<int32_t>(sizes_, "sizes", ScalarType::Int, count, 2)),
        objects(checked<float>(objects_, "objects", ScalarType::Float, objects_.size(0), 4)),
        offsets(checked<int64_t>(offsets_, "offsets", ScalarType::Long, count + 1, 0)) {
    const bool rising = offsets[0] == 0 && std::is_sorted(offsets, offsets + count + 1);
    STD_TORCH_CHECK(rising && offsets[count] == objects_.size(0), "offsets do not fit the objects");
  }

  Place place(int64_t image) const { return place_of(places + 6 * image); }
  float height(int64_t image) const { return static_cast<float>(sizes[2 * image]); }
  float width(int64_t image) const { return static_cast<float>(sizes[2 * image + 1]); }
};

std::tuple<Tensor, Tensor> best_overlaps(const Tensor& places, const Tensor& sizes, const Tensor& objects,
                                         const Tensor& offsets, std::vector<int64_t> counts, double min_size,
                                         int64_t top_k, bool filtered) {
  const Images images(places, sizes, objects, offsets);
  const bool rising = std::is_sorted(counts.begin(), counts.end()) && (counts.empty() || counts[0] >= 0);
  STD_TORCH_CHECK(rising, "counts must rise from 0 or more");
  const int64_t columns = static_cast<int64_t>(counts.size());
  Tensor best = torch::stable::empty({objects.size(0), columns}, ScalarType::Float);
  Tensor held = torch::stable::empty({images.count}, ScalarType::Long);
  float* const to = best.mutable_data_ptr<float>();
  int64_t* const numbers = held.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, images.count, 4, [&](int64_t begin, int64_t end) {
    Stored stored;
    Filter filter;
    Candidates candidates;
    for (int64_t i = begin; i < end; ++i) {
      const Place place = images.place(i);
      candidates.clear();
      if (place.boxes_file >= 0) {
        if (!stored.read(place)) {
          std::fill_n(to + images.offsets[i] * columns, (images.offsets[i + 1] - images.offsets[i]) * columns,
                      0.0f);
          numbers[i] = -1;
          continue;
        }
        if (filtered) {
          filter.run(stored.boxes(), stored.scores(), stored.count(), images.height(i), images.width(i),
                     {static_cast<float>(min_size), top_k, true});
          candidates.add(filter.boxes().data(), static_cast<int64_t>(filter.rows().size()));
        } else {
          candidates.add(stored.boxes(), stored.count());
        }
      }
      numbers[i] = candidates.count();
      for (int64_t row = images.offsets[i]; row < images.offsets[i + 1]; ++row)
        candidates.best_of_first(images.objects + 4 * row, counts, to + row * columns);
    }
  });
  return {best, held};
}

// The pairs of one range of images, which the threads deliver in any order.
struct Pairs {
  std::vector<float> boxes;
  std::vector<int64_t> objects;
};

std::tuple<Tensor, Tensor, Tensor> matched_proposals(const Tensor& places, const Tensor& sizes,
                                                     const Tensor& objects, const Tensor& offsets,
                                                     double threshold, double min_size, int64_t top_k,
                                                     bool full_image) {
  const Images images(places, sizes, objects, offsets);
  Tensor held = torch::stable::empty({images.count}, ScalarType::Long);
  int64_t* const numbers = held.mutable_data_ptr<int64_t>();
  std::map<int64_t, Pairs> parts;
  std::mutex mutex;
  torch::stable::parallel_for(0, images.count, 4, [&](int64_t begin, int64_t end) {
    Stored stored;
    Filter filter;
    Candidates candidates;
    Pairs pairs;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = images.offsets[i], count = images.offsets[i + 1] - first;
      numbers[i] = 0;
      if (count == 0) continue;
      candidates.clear();
      candidates.add(images.objects + 4 * first, count);
      const Place place = images.place(i);
      if (place.boxes_file >= 0) {
        if (!stored.read(place)) {
          numbers[i] = -1;
          continue;
        }
        filter.run(stored.boxes(), stored.scores(), stored.count(), images.height(i), images.width(i),
                   {static_cast<float>(min_size), top_k, true});
        candidates.add(filter.boxes().data(), static_cast<int64_t>(filter.rows().size()));
      } else if (full_image) {
        const float whole[4] = {0, 0, images.width(i), images.height(i)};
        candidates.add(whole, 1);
      }
      numbers[i] = candidates.count() - count;
      candidates.match(images.objects + 4 * first, count);
      for (int64_t row = 0; row < candidates.count(); ++row) {
        if (!(candidates.best()[row] >= static_cast<float>(threshold))) continue;
        pairs.boxes.resize(pairs.boxes.size() + 4);
        candidates.copy(row, pairs.boxes.data() + pairs.boxes.size() - 4);
        pairs.objects.push_back(first + candidates.matched()[row]);
      }
    }
    const std::lock_guard<std::mutex> lock(mutex);
    parts[begin] = std::move(pairs);
  });
  int64_t total = 0;
  for (const auto& [begin, pairs] : parts) total += static_cast<int64_t>(pairs.objects.size());
  Tensor boxes = torch::stable::empty({total, 4}, ScalarType::Float);
  Tensor rows = torch::stable::empty({total}, ScalarType::Long);
  float* to_boxes = boxes.mutable_data_ptr<float>();
  int64_t* to_rows = rows.mutable_data_ptr<int64_t>();
  for (const auto& [begin, pairs] : parts) {
    to_boxes = std::copy(pairs.boxes.begin(), pairs.boxes.end(), to_boxes);
    to_rows = std::copy(pairs.objects.begin(), pairs.objects.end(), to_rows);
  }
  return {boxes, rows, held};
}

std::tuple<Tensor, Tensor> match_boxes(const Tensor& boxes, const Tensor& objects) {
  const int64_t count = boxes.size(0), others = objects.size(0);
  STD_TORCH_CHECK(count <= kMaxBoxes && others <= kMaxBoxes && others > 0, "no objects, or too many boxes");
  Candidates candidates;
  candidates.add(checked<float>(boxes, "boxes", ScalarType::Float, count, 4), count);
  candidates.match(checked<float>(objects, "objects", ScalarType::Float, others, 4), others);
  Tensor matched = torch::stable::empty({count}, ScalarType::Long);
  std::copy(candidates.matched().begin(), candidates.matched().end(), matched.mutable_data_ptr<int64_t>());
  return {tensor_of({count}, ScalarType::Float, candidates.best().data()), matched};
}

STABLE_TORCH_LIBRARY_FRAGMENT(detector, m) {
  m.def("match_boxes(Tensor boxes, Tensor objects) -> (Tensor best, Tensor matched)");
  m.def(
      "filter_proposals(Tensor boxes, Tensor? scores, int height, int width, float min_size, int top_k, "
      "bool deduplicate) -> (Tensor boxes, Tensor scores)");
  m.def(
      "read_proposals(int[] place, int height, int width, float min_size, int top_k, bool deduplicate) -> "
      "(Tensor boxes, Tensor scores, bool sound)");
  m.def(
      "best_overlaps(Tensor places, Tensor sizes, Tensor objects, Tensor offsets, int[] counts, "
      "float min_size, int top_k, bool filtered) -> (Tensor best, Tensor held)");
  m.def(
      "matched_proposals(Tensor places, Tensor sizes, Tensor objects, Tensor offsets, float threshold, "
      "float min_size, int top_k, bool full_image) -> (Tensor boxes, Tensor objects, Tensor held)");
}

STABLE_TORCH_LIBRARY_IMPL(detector, CPU, m) {
  m.impl("match_boxes", TORCH_BOX(&match_boxes));
  m.impl("filter_proposals", TORCH_BOX(&filter_proposals));
  m.impl("best_overlaps", TORCH_BOX(&best_overlaps));
  m.impl("matched_proposals", TORCH_BOX(&matched_proposals));
}

STABLE_TORCH_LIBRARY_IMPL(detector, CompositeExplicitAutograd, m) {
  m.impl("read_proposals", TORCH_BOX(&read_proposals));  // has no tensors among its arguments
}

}  // namespace
}  // namespace detector::boxes
