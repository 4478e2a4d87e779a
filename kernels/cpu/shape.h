// The sizes of a tensor's axes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <vector>

namespace onnxopt {

/// A vector of sizes, of which a few need no memory besides: to allocate it takes as long as to compute a small tensor. There are
/// only copies of it, no moves.
class Shape {
 public:
  using value_type = std::int64_t;
  using iterator = std::int64_t*;
  using const_iterator = const std::int64_t*;

  Shape() = default;
  Shape(const Shape&) = default;
  Shape& operator=(const Shape&) = default;
  ~Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes) { assign(sizes.begin(), sizes.end()); }
  explicit Shape(std::size_t count, std::int64_t size = 0) { resize(count, size); }
  template <std::forward_iterator Iterator>
  Shape(Iterator first, Iterator last) {
    assign(first, last);
  }

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::int64_t* data() { return size_ <= kFew ? few_ : many_.data(); }
  const std::int64_t* data() const { return size_ <= kFew ? few_ : many_.data(); }
  iterator begin() { return data(); }
  iterator end() { return data() + size_; }
  const_iterator begin() const { return data(); }
  const_iterator end() const { return data() + size_; }
  std::int64_t& operator[](std::size_t axis) { return data()[axis]; }
  std::int64_t operator[](std::size_t axis) const { return data()[axis]; }
  std::int64_t& front() { return data()[0]; }
  std::int64_t front() const { return data()[0]; }
  std::int64_t& back() { return data()[size_ - 1]; }
  std::int64_t back() const { return data()[size_ - 1]; }

  void resize(std::size_t count, std::int64_t size = 0) {
    if (count > kFew) {
      if (size_ <= kFew) many_.assign(few_, few_ + size_);
      many_.resize(count, size);
    } else {
      if (size_ > kFew) std::copy_n(many_.begin(), count, few_);
      if (size_ < count) std::fill(few_ + size_, few_ + count, size);
    }
    size_ = count;
  }
  template <std::forward_iterator Iterator>
  void assign(Iterator first, Iterator last) {
    resize(static_cast<std::size_t>(std::distance(first, last)));
    std::copy(first, last, data());
  }
  void push_back(std::int64_t size) { resize(size_ + 1, size); }
  void pop_back() { resize(size_ - 1); }
  void insert(const_iterator at, std::int64_t size) { *open(at, 1) = size; }
  void insert(const_iterator at, std::size_t count, std::int64_t size) { std::fill_n(open(at, count), count, size); }
  /// The sizes are another shape's.
  template <std::forward_iterator Iterator>
  void insert(const_iterator at, Iterator first, Iterator last) {
    std::copy(first, last, open(at, static_cast<std::size_t>(std::distance(first, last))));
  }
  void erase(const_iterator at) { erase(at, at + 1); }
  void erase(const_iterator first, const_iterator last) {
    std::copy(last, static_cast<const_iterator>(end()), begin() + (first - begin()));
    resize(size_ - static_cast<std::size_t>(last - first));
  }

  friend bool operator==(const Shape& a, const Shape& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

 private:
  static constexpr std::size_t kFew = 8;

  /// Makes room before `at`, and returns where it begins.
  iterator open(const_iterator at, std::size_t count) {
    const std::ptrdiff_t place = at - begin();
    const std::size_t before = size_;
    resize(before + count);
    std::copy_backward(begin() + place, begin() + static_cast<std::ptrdiff_t>(before), end());
    return begin() + place;
  }

  std::size_t size_ = 0;
  std::int64_t few_[kFew];          // all sizes, where there are no more; the others are not set
  std::vector<std::int64_t> many_;  // else
};

}  // namespace onnxopt
