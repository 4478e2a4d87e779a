// Runs random products with random epilogues in every variant that this machine has, for the sanitizers. All memory is as small as
// the interface allows. The numbers are whole and small, so that results must be equal to those of plain loops.
//
//     onnxopt_gemm_driver [problems] [seed]
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "csrc/dispatch/cpu.h"
#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cuda/gemm/gemm.h"
#include "tests/kernels/driver.h"

namespace {

using namespace onnxopt;
using driver::ceil_div;
using driver::Floats;
using elementwise::Shape;

struct Generator : driver::Random {
  using Random::Random;
  /// Mostly small, at times beyond a block.
  std::int64_t size(int small, int large) { return below(8) == 0 ? below(large) : below(small); }
  Floats whole(std::int64_t count) { return Random::whole(count, 4); }
};

struct Matrices {
  std::int64_t rows, row_step, depth, columns;
  Floats a;
  std::vector<Floats> plain, packed, biases;
};

Floats pack(const Floats& plain, std::int64_t depth, std::int64_t columns) {
  constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
  Floats packed(ceil_div(columns, panel) * depth * panel);
  for (std::int64_t k = 0; k < depth; ++k)
    for (std::int64_t j = 0; j < columns; ++j)
      packed.data[(j / panel * depth + k) * panel + j % panel] = plain.data[k * columns + j];
  return packed;
}

Matrices draw(Generator& generator, std::int64_t rows) {
  const std::int64_t depth = generator.size(40, 2200), columns = 1 + generator.size(70, 400);
  const std::int64_t row_step = depth + (generator.below(4) == 0 ? generator.below(5) : 0);
  Matrices made{rows, row_step, depth, columns, generator.whole(rows == 0 ? 0 : (rows - 1) * row_step + depth), {}, {}, {}};
  const bool biased = generator.below(2) != 0;
  for (int i = 1 + generator.below(static_cast<int>(gemm::kMostProducts)); i > 0; --i) {
    made.plain.push_back(generator.whole(depth * columns));
    made.packed.push_back(pack(made.plain.back(), depth, columns));
    if (biased) made.biases.push_back(generator.whole(columns));
  }
  return made;
}

/// What product `index` is.
Floats expected(const Matrices& matrices, std::size_t index) {
  Floats c(matrices.rows * matrices.columns);
  for (std::int64_t i = 0; i < matrices.rows; ++i) {
    float* const row = c.data.get() + i * matrices.columns;
    for (std::int64_t j = 0; j < matrices.columns; ++j) row[j] = matrices.biases.empty() ? 0.0f : matrices.biases[index].data[j];
    for (std::int64_t k = 0; k < matrices.depth; ++k)
      for (std::int64_t j = 0; j < matrices.columns; ++j)
        row[j] += matrices.a.data[i * matrices.row_step + k] * matrices.plain[index].data[k * matrices.columns + j];
  }
  return c;
}

bool same(const Floats& actual, const Floats& wanted, const char* variant, const char* what) {
  for (std::int64_t i = 0; i < wanted.count; ++i)
    if (actual.data[i] != wanted.data[i]) {
      std::printf("%s: %s: element %lld is %g and should be %g\n", variant, what, static_cast<long long>(i),
                  static_cast<double>(actual.data[i]), static_cast<double>(wanted.data[i]));
      return false;
    }
  return true;
}

/// A problem over the products, which go to `c`; with an empty one they go to scratch memory.
gemm::Problem problem_of(const Matrices& matrices, std::vector<gemm::Product>& products, std::vector<Floats>& c) {
  products.clear();
  for (std::size_t i = 0; i < matrices.packed.size(); ++i)
    products.push_back({matrices.packed[i].data.get(), matrices.biases.empty() ? nullptr : matrices.biases[i].data.get(),
                        c.empty() ? nullptr : c[i].data.get()});
  return {matrices.a.data.get(), matrices.row_step, matrices.rows, matrices.depth, matrices.columns,
          products.data(),       products.size(),   nullptr,       nullptr};
}

bool run_products(Generator& generator, const gemm::Variant& variant, const Matrices& matrices, const std::vector<Floats>& wanted) {
  std::vector<Floats> c;
  for (const Floats& one : wanted) c.emplace_back(one.count, NAN);
  std::vector<gemm::Product> products;
  gemm::Problem problem = problem_of(matrices, products, c);
  const gemm::Bounds bounds{-3.0f, 5.0f};
  if (generator.below(3) == 0) problem.clip = &bounds;
  gemm::run(problem, variant, ParallelFor::inline_loop());
  for (std::size_t i = 0; i < c.size(); ++i) {
    Floats clipped(wanted[i].count);
    for (std::int64_t k = 0; k < clipped.count; ++k)
      clipped.data[k] = problem.clip ? std::clamp(wanted[i].data[k], bounds.low, bounds.high) : wanted[i].data[k];
    if (!same(c[i], clipped, variant.name, "product")) return false;
  }
  return true;
}

/// The same products with the weights as integers: small enough for four bits, at a scale of one.
bool run_integers(Generator& generator, const gemm::Variant& variant, const Matrices& matrices, const std::vector<Floats>& wanted) {
  const bool halves = generator.below(2) != 0;
  const std::int64_t block = generator.below(2) != 0 ? 1 + generator.below(40) : std::max<std::int64_t>(matrices.depth, 1);
  std::vector<std::vector<std::uint8_t>> integers;
  for (const Floats& packed : matrices.packed) {
    integers.emplace_back(static_cast<std::size_t>(halves ? packed.count / 2 : packed.count));
    for (std::int64_t i = 0; i < packed.count; ++i) {
      const auto number = static_cast<std::uint8_t>(static_cast<std::int8_t>(packed.data[i]));
      if (halves)
        integers.back()[static_cast<std::size_t>(i / 2)] |= static_cast<std::uint8_t>((number & 15) << 4 * (i % 2));
      else
        integers.back()[static_cast<std::size_t>(i)] = number;
    }
    integers.back().shrink_to_fit();
  }
  constexpr auto panel = static_cast<std::int64_t>(gemm::kPanel);
  const Floats scales(ceil_div(matrices.columns, panel) * ceil_div(matrices.depth, block) * panel, 1.0f);
  std::vector<Floats> c;
  for (const Floats& one : wanted) c.emplace_back(one.count, NAN);
  std::vector<gemm::Product> products;
  gemm::Problem problem = problem_of(matrices, products, c);
  for (std::size_t i = 0; i < products.size(); ++i) {
    products[i].weights = integers[i].data();
    products[i].scales = scales.data.get();
  }
  problem.kind = halves ? gemm::Weights::kInt4 : gemm::Weights::kInt8;
  problem.block = block;
  gemm::run(problem, variant, ParallelFor::inline_loop());
  for (std::size_t i = 0; i < c.size(); ++i)
    if (!same(c[i], wanted[i], variant.name, halves ? "product with int4" : "product with int8")) return false;
  return true;
}

/// A program that adds all products and inputs up, and one that is twice that.
std::string sum_of(std::size_t inputs) {
  std::string declared, statements = " t0=add(i0,i0)";
  for (std::size_t i = 0; i < inputs; ++i) {
    declared += "i" + std::to_string(i) + ":f32 ";
    statements += " t" + std::to_string(i + 1) + "=add(t" + std::to_string(i) + ",i" + std::to_string(i) + ")";
  }
  const std::string last = "t" + std::to_string(inputs);
  return declared + "|" + statements + " t" + std::to_string(inputs + 1) + "=add(" + last + "," + last + ") | " + last + ":f32 t" +
         std::to_string(inputs + 1) + ":f32";
}

bool run_epilogue(Generator& generator, const gemm::Variant& variant, const Matrices& matrices, const Shape& shape,
                  const std::vector<Floats>& wanted) {
  std::vector<Shape> shapes(matrices.packed.size(), shape);
  std::vector<Floats> operands;
  std::vector<const void*> raw_data, data;
  for (const Floats& one : wanted) raw_data.push_back(one.data.get()), data.push_back(nullptr);
  for (int i = generator.below(4); i > 0; --i) {
    Shape one(shape.begin() + generator.below(static_cast<int>(shape.size()) + 1), shape.end());
    std::int64_t count = 1;
    for (auto& dim : one) count *= dim = generator.below(3) == 0 ? 1 : dim;
    operands.push_back(generator.whole(count));
    shapes.push_back(std::move(one));
    raw_data.push_back(operands.back().data.get()), data.push_back(operands.back().data.get());
  }
  const auto program = elementwise::Program::parse(sum_of(shapes.size()));
  const auto list = elementwise::variants();
  const auto same_isa = [&](const auto& one) { return std::string_view(one.isa) == variant.isa; };
  const elementwise::Variant& elementwise_variant = *std::find_if(list.begin(), list.end(), same_isa);
  const std::vector<std::span<const std::int64_t>> views(shapes.begin(), shapes.end());
  const std::vector<Shape> output_shapes(2, shape);
  std::vector<Floats> reference, results;
  std::vector<void*> reference_data, result_data;
  for (int i = 0; i < 2; ++i) {
    reference.emplace_back(matrices.rows * matrices.columns), results.emplace_back(matrices.rows * matrices.columns);
    reference_data.push_back(reference.back().data.get()), result_data.push_back(results.back().data.get());
  }
  if (!elementwise::run(*program, elementwise_variant, {raw_data, views, reference_data, output_shapes},
                        ParallelFor::inline_loop()))
    return false;
  const auto epilogue =
      elementwise::Epilogue::make(*program, elementwise_variant, matrices.packed.size(), {data, views, result_data, output_shapes});
  if (!epilogue) {
    std::printf("%s: %s\n", variant.name, epilogue.error().c_str());
    return false;
  }
  std::vector<gemm::Product> products;
  std::vector<Floats> nowhere;
  gemm::Problem problem = problem_of(matrices, products, nowhere);
  problem.epilogue = &*epilogue;
  gemm::run(problem, variant, ParallelFor::inline_loop());
  return same(results[0], reference[0], variant.name, "epilogue") && same(results[1], reference[1], variant.name, "second output");
}

constexpr std::int64_t kMostMultiplied = 1 << 16;

/// The kernel for CUDA devices, on fibers of the host: products alone, and with a program that adds them up.
bool run_emulated(const Matrices& matrices, const Shape& shape, const std::vector<Floats>& wanted,
                  gemm::cuda::Precision precision) {
  const char* const name = precision == gemm::cuda::Precision::kTf32 ? "gemm__cuda_tf32_emulated" : "gemm__cuda_emulated";
  Floats a(matrices.rows * matrices.depth);
  for (std::int64_t row = 0; row < matrices.rows; ++row)
    std::copy_n(matrices.a.data.get() + row * matrices.row_step, matrices.depth, a.data.get() + row * matrices.depth);
  std::vector<Floats> c;
  for (const Floats& one : wanted) c.emplace_back(one.count, NAN);
  std::vector<gemm::Product> products;
  problem_of(matrices, products, c);
  gemm::cuda::Problem problem{a.data.get(), matrices.rows, matrices.depth, matrices.columns, {}, products.size(), precision};
  for (std::size_t i = 0; i < products.size(); ++i) problem.products[i] = {products[i].weights, products[i].bias, products[i].c};
  if (matrices.rows == 0) return true;
  if (!gemm::cuda::emulate(problem)) return false;
  for (std::size_t i = 0; i < c.size(); ++i)
    if (!same(c[i], wanted[i], name, "product")) return false;
  Floats sum(wanted[0].count), twice(wanted[0].count), results[2] = {Floats(sum.count), Floats(sum.count)};
  for (std::int64_t k = 0; k < sum.count; ++k) {
    sum.data[k] = 2 * wanted[0].data[k];
    for (const Floats& one : wanted) sum.data[k] += one.data[k];
    twice.data[k] = 2 * sum.data[k];
  }
  const auto program = elementwise::Program::parse(sum_of(wanted.size()));
  const std::vector<const void*> taken(wanted.size(), nullptr);
  const std::vector<std::span<const std::int64_t>> shapes(wanted.size(), shape);
  const std::vector<Shape> output_shapes(2, shape);
  void* const outputs[] = {results[0].data.get(), results[1].data.get()};
  const elementwise::cuda::Bound epilogue{&*program, {taken, shapes, outputs, output_shapes}};
  problem.epilogue = &epilogue;
  for (gemm::cuda::Factor& product : problem.products) product.c = nullptr;
  return gemm::cuda::emulate(problem) && same(results[0], sum, name, "epilogue") && same(results[1], twice, name, "second output");
}

bool run_one(Generator& generator, int) {
  Shape shape;
  std::int64_t rows = 1;
  for (int rank = generator.below(4); rank > 0; --rank) {
    shape.push_back(generator.below(20) == 0 ? 0 : 1 + generator.below(generator.below(3) == 0 ? 40 : 4));
    rows *= shape.back();
  }
  const Matrices matrices = draw(generator, rows);
  shape.push_back(matrices.columns);
  std::vector<Floats> wanted;
  for (std::size_t i = 0; i < matrices.plain.size(); ++i) wanted.push_back(expected(matrices, i));
  for (const gemm::Variant& variant : gemm::variants())
    if (dispatch::supports(variant.isa) &&
        !(run_products(generator, variant, matrices, wanted) && run_integers(generator, variant, matrices, wanted) &&
          run_epilogue(generator, variant, matrices, shape, wanted)))
      return false;
  using gemm::cuda::Precision;
  // What matrix instructions exchange between fibers takes its time.
  const bool small = rows * matrices.depth * matrices.columns < kMostMultiplied;
  return run_emulated(matrices, shape, wanted, Precision::kFloat) &&
         (!small || run_emulated(matrices, shape, wanted, Precision::kTf32));
}

}  // namespace

int main(int argc, char** argv) { return driver::run_problems<Generator>(argc, argv, "products", run_one); }
