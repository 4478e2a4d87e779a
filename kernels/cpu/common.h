// What every kernel family shares: results with a sentence instead of exceptions, and a reference to the caller's thread pool.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <variant>

namespace onnxopt {

/// A value, or a sentence that says what is wrong and where.
template <typename T>
class Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit, so that functions just return
  static Result failure(std::string sentence) { return Result(std::in_place_index<1>, std::move(sentence)); }

  explicit operator bool() const { return state_.index() == 0; }
  T& operator*() { return std::get<0>(state_); }
  const T& operator*() const { return std::get<0>(state_); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }
  const std::string& error() const { return std::get<1>(state_); }

 private:
  template <std::size_t I>
  Result(std::in_place_index_t<I> index, std::string sentence) : state_(index, std::move(sentence)) {}

  std::variant<T, std::string> state_;
};

/// Calls `task(user, index)` for every index below `total`, in any order, on any number of threads, and waits for all.
struct ParallelFor {
  using Task = void (*)(void* user, std::size_t index);
  void (*run)(void* pool, std::size_t total, Task task, void* user);
  void* pool;

  void operator()(std::size_t total, Task task, void* user) const { run(pool, total, task, user); }

  /// Runs everything on the calling thread.
  static ParallelFor inline_loop() { return {run_inline, nullptr}; }

 private:
  static void run_inline(void*, std::size_t total, Task task, void* user) {
    for (std::size_t i = 0; i < total; ++i) task(user, i);
  }
};

}  // namespace onnxopt
