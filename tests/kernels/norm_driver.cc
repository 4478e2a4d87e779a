// Runs FusedNorm and FusedSoftmax with random shapes, axes and programs in every variant that this machine has, for the sanitizers.
// All memory is as small as the interface allows. Results are compared with plain loops in double precision.
//
//     onnxopt_norm_driver [nodes] [seed]
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "csrc/dispatch/cpu.h"
#include "csrc/ops/fused_norm.h"
#include "csrc/ops/fused_softmax.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using ops::Shape;

class Attributes final : public ops::Attributes {
 public:
  std::map<std::string, std::int64_t> integers_of;
  std::map<std::string, std::string> strings_of;

  std::optional<std::string> string(const char* name) const override { return find(strings_of, name); }
  std::optional<std::int64_t> integer(const char* name) const override { return find(integers_of, name); }
  std::optional<float> real(const char*) const override { return std::nullopt; }
  std::optional<std::vector<std::int64_t>> integers(const char*) const override { return std::nullopt; }

 private:
  template <typename T>
  static std::optional<T> find(const std::map<std::string, T>& map, const char* name) {
    const auto found = map.find(name);
    return found == map.end() ? std::nullopt : std::optional(found->second);
  }
};

std::int64_t count_of(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

/// A tensor in memory of just its size.
struct Tensor {
  explicit Tensor(Shape shape) : shape(std::move(shape)), data(count_of(this->shape), NAN) {}

  ops::Tensor tensor() const {
    ops::Tensor made;
    made.type = ops::kFloat;
    made.shape = shape;
    made.data = data.get();
    return made;
  }
  /// The element that is broadcast to a position in a tensor of another shape.
  double at(std::int64_t position, const Shape& whole) const {
    std::int64_t offset = 0, step = 1;
    for (std::size_t i = 0; i < whole.size(); ++i) {
      const std::int64_t size = whole[whole.size() - 1 - i], index = position % size;
      position /= size;
      if (i >= shape.size()) continue;
      const std::int64_t own = shape[shape.size() - 1 - i];
      offset += own == 1 ? 0 : index * step;
      step *= own;
    }
    return static_cast<double>(data[offset]);
  }

  Shape shape;
  driver::Floats data;
};

struct Generator : driver::Random {
  using Random::Random;
  std::int64_t size() { return below(25) == 0 ? 0 : below(6) == 0 ? 1 + below(200) : 1 + below(9); }
  Tensor floats(Shape shape) {
    Tensor made(std::move(shape));
    for (std::int64_t i = 0; i < count_of(made.shape); ++i) made.data[i] = std::normal_distribution<float>()(engine);
    return made;
  }
  /// Some of the last dims of a shape, some of them 1.
  Tensor operand(const Shape& shape) {
    Shape made(shape.begin() + below(static_cast<int>(shape.size()) + 1), shape.end());
    for (auto& dim : made) dim = below(3) == 0 ? 1 : dim;
    return floats(std::move(made));
  }
};

/// A node over random tensors, and what it should make.
struct Case {
  bool softmax = false;
  Attributes attributes;
  Shape shape;
  std::int64_t width = 1, inner = 1;
  std::int64_t groups = 0;  // of channels that lie last
  std::vector<Tensor> inputs;
  std::vector<double> kept, expected;
};

/// The result along one row or column.
void transform_row(const Case& one, const std::vector<double>& x, std::vector<double>& y, std::int64_t first) {
  double mean = 0.0, squares = 0.0, largest = -INFINITY, total = 0.0;
  const auto at = [&](std::int64_t k) { return static_cast<std::size_t>(first + k * one.inner); };
  for (std::int64_t k = 0; k < one.width; ++k)
    mean += x[at(k)] / static_cast<double>(one.width), largest = std::max(largest, x[at(k)]);
  for (std::int64_t k = 0; k < one.width; ++k) {
    squares += (x[at(k)] - mean) * (x[at(k)] - mean) / static_cast<double>(one.width);
    total += std::exp(x[at(k)] - largest);
  }
  for (std::int64_t k = 0; k < one.width; ++k)
    y[at(k)] = one.softmax ? std::exp(x[at(k)] - largest) / total : (x[at(k)] - mean) / std::sqrt(squares + double(1e-5f));
}

void add_epilogue(Generator& generator, Case& one) {
  if (generator.below(2) == 0) return;
  one.attributes.strings_of["epilogue"] = "i0:f32 i1:f32 | t0=abs(i0) t1=add(t0,i1) | t1:f32";
  one.inputs.push_back(generator.operand(one.shape));
  for (std::int64_t i = 0; i < count_of(one.shape); ++i) {
    double& y = one.expected[static_cast<std::size_t>(i)];
    y = std::fabs(y) + one.inputs.back().at(i, one.shape);
  }
}

Case draw(Generator& generator) {
  Case one;
  one.softmax = generator.below(2) != 0;
  for (int rank = 1 + generator.below(4); rank > 0; --rank) one.shape.push_back(generator.size());
  const int rank = static_cast<int>(one.shape.size()), inner = generator.below(rank);
  const int own = one.softmax ? 1 : 1 + generator.below(rank - inner);
  for (int i = 0; i < inner; ++i) one.inner *= one.shape[static_cast<std::size_t>(rank - 1 - i)];
  for (int i = 0; i < own; ++i) one.width *= one.shape[static_cast<std::size_t>(rank - 1 - inner - i)];
  one.attributes.integers_of["axis"] = -inner - own;
  if (!one.softmax) one.attributes.integers_of["inner"] = inner;
  one.inputs.push_back(generator.floats(one.shape));
  if (generator.below(3) != 0) {
    const int terms = 1 + generator.below(4);
    std::string declared = "i0:f32", statements;
    for (int i = 0; i < terms; ++i) {
      one.inputs.push_back(generator.operand(one.shape));
      declared += " i" + std::to_string(i + 1) + ":f32";
      statements +=
          " t" + std::to_string(i) + "=add(" + (i ? "t" + std::to_string(i - 1) : "i0") + ",i" + std::to_string(i + 1) + ")";
    }
    // A sum that ends in another operation takes the way through the interpreter.
    const bool plain = generator.below(2) != 0;
    if (!plain) statements += " t" + std::to_string(terms) + "=abs(t" + std::to_string(terms - 1) + ")";
    one.attributes.strings_of["prologue"] =
        declared + " |" + statements + " | t" + std::to_string(terms - (plain ? 1 : 0)) + ":f32";
    if (generator.below(2) != 0) one.attributes.integers_of["kept"] = 1;
    if (!plain) one.attributes.integers_of["absolute"] = 1;
  }
  const std::int64_t count = count_of(one.shape);
  one.kept.resize(static_cast<std::size_t>(count));
  one.expected.resize(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    // Rounded as the kernel rounds: a small variance makes the last bit a large one.
    float sum = 0.0f;
    for (const Tensor& input : one.inputs) sum += static_cast<float>(input.at(i, one.shape));
    one.kept[static_cast<std::size_t>(i)] =
        static_cast<double>(one.attributes.integers_of.contains("absolute") ? std::fabs(sum) : sum);
  }
  if (count > 0)
    for (std::int64_t outer = 0; outer < count / (one.width * one.inner); ++outer)
      for (std::int64_t column = 0; column < one.inner; ++column)
        transform_row(one, one.kept, one.expected, outer * one.width * one.inner + column);
  add_epilogue(generator, one);
  return one;
}

/// Groups of channels that lie last.
Case draw_groups(Generator& generator) {
  Case one;
  one.groups = 1 + generator.below(5);
  const std::int64_t of_group = generator.below(8) == 0 ? 100 : 1 + generator.below(9), channels = one.groups * of_group;
  one.shape.push_back(generator.size() % 4);
  one.shape.push_back(generator.below(4) == 0 ? 700 : generator.size());
  if (generator.below(2) != 0) one.shape.push_back(1 + generator.below(9));
  one.shape.push_back(channels);
  one.attributes.integers_of["groups"] = one.groups;
  one.attributes.integers_of["channels_last"] = 1;
  one.inputs.push_back(generator.floats(one.shape));
  const std::int64_t count = count_of(one.shape), places = one.shape[0] == 0 ? 0 : count / one.shape[0] / channels;
  one.expected.resize(static_cast<std::size_t>(count));
  const auto for_group = [&](std::int64_t image, std::int64_t group, auto body) {
    for (std::int64_t place = 0; place < places; ++place)
      for (std::int64_t c = group * of_group; c < (group + 1) * of_group; ++c) body((image * places + place) * channels + c);
  };
  for (std::int64_t image = 0; image < one.shape[0]; ++image)
    for (std::int64_t group = 0; group < one.groups; ++group) {
      const double share = 1.0 / static_cast<double>(places * of_group);
      double mean = 0.0, squares = 0.0;
      const auto x = [&](std::int64_t i) { return static_cast<double>(one.inputs[0].data[i]); };
      for_group(image, group, [&](std::int64_t i) { mean += x(i) * share; });
      for_group(image, group, [&](std::int64_t i) { squares += (x(i) - mean) * (x(i) - mean) * share; });
      for_group(image, group, [&](std::int64_t i) {
        one.expected[static_cast<std::size_t>(i)] = (x(i) - mean) / std::sqrt(squares + double(1e-5f));
      });
    }
  add_epilogue(generator, one);
  return one;
}

bool close(const Tensor& actual, const std::vector<double>& expected, const char* variant, const char* what) {
  double largest = 1e-30;
  for (const double one : expected) largest = std::max(largest, std::fabs(one));
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (const auto found = static_cast<double>(actual.data.data[i]); !(std::fabs(found - expected[i]) <= 2e-5 * largest)) {
      std::printf("%s: %s: element %zu is %g and should be %g\n", variant, what, i, found, expected[i]);
      return false;
    }
  return true;
}

bool run(const Case& one, const ops::Op& op, const ops::Variant& variant) {
  const auto kernel = op.create(one.attributes, variant.name);
  std::vector<ops::Tensor> tensors;
  for (const Tensor& input : one.inputs) tensors.push_back(input.tensor());
  const auto types = kernel ? (*kernel)->outputs(tensors) : Result<std::vector<ops::TensorType>>::failure(kernel.error());
  if (!types) {
    std::printf("%s: %s\n", variant.name, types.error().c_str());
    return false;
  }
  std::vector<Tensor> results;
  std::vector<void*> memory;
  for (const ops::TensorType& type : *types) memory.push_back(results.emplace_back(type.shape).data.get());
  if (!(*kernel)->run(tensors, *types, memory, {ParallelFor::inline_loop()})) return false;
  return close(results[0], one.expected, variant.name, "result") &&
         (results.size() == 1 || close(results[1], one.kept, variant.name, "kept"));
}

bool run_one(Generator& generator, int) {
  const Case one = generator.below(4) == 0 ? draw_groups(generator) : draw(generator);
  const ops::Op& op = one.softmax ? ops::fused_softmax() : ops::fused_norm();
  std::vector<ops::Variant> variants(op.variants.begin(), op.variants.end());
  if (one.groups == 0) variants.push_back({"norm__cuda_emulated", "scalar"});
  for (const ops::Variant& variant : variants)
    if (dispatch::supports(variant.isa) && !run(one, op, variant)) {
      std::printf("It has the shape %s.\n", ops::text_of(one.shape).c_str());
      return false;
    }
  return true;
}

}  // namespace

int main(int argc, char** argv) { return driver::run_problems<Generator>(argc, argv, "norms", run_one); }
