// Uninitialised arrays that keep their memory between uses.
//
// The working arrays of one image are tens of megabytes; std::vector would write each of them once for
// nothing, and fresh pages for each segmentation would cost as much as the segmentation's sort.
#pragma once

#include <cstddef>
#include <memory>

namespace detector::selective_search {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) { resize(size); }

  // Makes room for `size` elements; the contents are undefined afterwards.
  void resize(size_t size) {
    if (size > capacity_) {
      data_.reset();  // before the new block, so that both never exist together
      data_.reset(new T[size]);
      capacity_ = size;
    }
    size_ = size;
  }

  void release() {
    data_.reset();
    size_ = capacity_ = 0;
  }

  size_t size() const { return size_; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }

 private:
  std::unique_ptr<T[]> data_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace detector::selective_search
