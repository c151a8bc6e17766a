#include "boxes/overlaps.h"

#include <algorithm>
#include <limits>

#include "pooling/cpu/lanes.h"

namespace detector::boxes {
namespace {

float area_of(const float* box) {
  const float width = std::max(box[2] - box[0], 0.0f), height = std::max(box[3] - box[1], 0.0f);
  return width * height;
}

// The loops are simple so that the compiler turns them into vector instructions: no branches, one comparison
// per selection.
DETECTOR_CLONES
void iou_with(const float* object, float area, const float* x1, const float* y1, const float* x2,
              const float* y2, const float* areas, int64_t count, float* iou) {
  const float left = object[0], top = object[1], right = object[2], bottom = object[3];
  for (int64_t i = 0; i < count; ++i) {
    const float inner_left = x1[i] > left ? x1[i] : left;
    const float inner_top = y1[i] > top ? y1[i] : top;
    const float inner_right = x2[i] < right ? x2[i] : right;
    const float inner_bottom = y2[i] < bottom ? y2[i] : bottom;
    float width = inner_right - inner_left, height = inner_bottom - inner_top;
    width = width > 0 ? width : 0;
    height = height > 0 ? height : 0;
    const float shared = width * height;
    const float all = areas[i] + area - shared;
    // Where areas are infinite, `all` is not a number; its comparisons are false.
    const float divisor = all > std::numeric_limits<float>::min() ? all : std::numeric_limits<float>::min();
    const float quotient = shared / divisor;
    iou[i] = all > 0 ? quotient : 0;
  }
}

DETECTOR_CLONES
float greatest(const float* values, int64_t count, float start) {
  constexpr int64_t kParts = 16;
  float parts[kParts];
  for (float& part : parts) part = start;
  int64_t i = 0;
  for (; i + kParts <= count; i += kParts)
    for (int64_t j = 0; j < kParts; ++j) parts[j] = values[i + j] > parts[j] ? values[i + j] : parts[j];
  for (; i < count; ++i) parts[0] = values[i] > parts[0] ? values[i] : parts[0];
  return *std::max_element(parts, parts + kParts);
}

DETECTOR_CLONES
void improve(const float* iou, int64_t count, int32_t object, float* best, int32_t* matched) {
  for (int64_t i = 0; i < count; ++i) {
    const bool better = iou[i] > best[i];
    best[i] = better ? iou[i] : best[i];
    matched[i] = better ? object : matched[i];
  }
}

}  // namespace

void Candidates::resize(int64_t count) {
  for (std::vector<float>* column : {&x1_, &y1_, &x2_, &y2_, &area_, &iou_}) column->resize(count);
}

void Candidates::add(const float* boxes, int64_t count) {
  const int64_t start = this->count();
  resize(start + count);
  for (int64_t i = 0; i < count; ++i) {
    const float* box = boxes + 4 * i;
    x1_[start + i] = box[0];
    y1_[start + i] = box[1];
    x2_[start + i] = box[2];
    y2_[start + i] = box[3];
    area_[start + i] = area_of(box);
  }
}

void Candidates::copy(int64_t row, float* box) const {
  box[0] = x1_[row];
  box[1] = y1_[row];
  box[2] = x2_[row];
  box[3] = y2_[row];
}

void Candidates::best_of_first(const float* object, const std::vector<int64_t>& counts, float* best) {
  const int64_t all = counts.empty() ? 0 : std::min(count(), counts.back());
  iou_with(object, area_of(object), x1_.data(), y1_.data(), x2_.data(), y2_.data(), area_.data(), all,
           iou_.data());
  float running = 0;
  int64_t done = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t end = std::min(all, counts[i]);
    running = greatest(iou_.data() + done, end - done, running);
    best[i] = running;
    done = end;
  }
}

void Candidates::match(const float* objects, int64_t objects_count) {
  best_.assign(count(), -1);
  matched_.assign(count(), 0);
  for (int64_t i = 0; i < objects_count; ++i) {
    const float* object = objects + 4 * i;
    iou_with(object, area_of(object), x1_.data(), y1_.data(), x2_.data(), y2_.data(), area_.data(), count(),
             iou_.data());
    improve(iou_.data(), count(), static_cast<int32_t>(i), best_.data(), matched_.data());
  }
}

}  // namespace detector::boxes
