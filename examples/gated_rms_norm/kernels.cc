// The kernels of this library: an op of its own, com.example::GatedRmsNorm, and a further variant of onnxopt's FusedNorm.
#include <onnxopt/kernel.h>

#include <algorithm>
#include <stdexcept>

#include "rows.h"

namespace {

using onnxopt::kernel::Attributes;
using onnxopt::kernel::count;
using onnxopt::kernel::has_rank;
using onnxopt::kernel::Outputs;
using onnxopt::kernel::Tensors;

constexpr std::int32_t kFloat = 1;
constexpr std::int64_t kElements = 16384;  // of a task, so that a thread has something to do

const float* floats(const OnnxOptTensor& tensor) { return static_cast<const float*>(tensor.data); }

/// Computes all rows of `x`, and shares them among the threads of the session.
void run_rows(const OnnxOptTensor& x, const float* gate, const float* scale, float epsilon, const OnnxOptTensor& y,
              RowFunction function, const OnnxOptExecution& execution) {
  const std::int64_t width = x.shape[x.rank - 1], rows = width == 0 ? 0 : count(x) / width;
  const std::int64_t together = std::max<std::int64_t>(kElements / std::max<std::int64_t>(width, 1), 1);
  onnxopt::kernel::parallel_for(execution, static_cast<std::size_t>((rows + together - 1) / together), [&](std::size_t task) {
    const std::int64_t begin = static_cast<std::int64_t>(task) * together, end = std::min(begin + together, rows);
    for (std::int64_t i = begin; i < end; ++i)
      function({floats(x) + i * width, gate ? gate + i * width : nullptr, scale, static_cast<float*>(y.data) + i * width,
                static_cast<std::size_t>(width), epsilon});
  });
}

void demand(bool holds, const char* sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

bool is_vector_of(const OnnxOptTensor& tensor, std::int64_t width) {
  return tensor.type == kFloat && tensor.rank == 1 && (tensor.shape[0] == width || tensor.shape[0] < 0 || width < 0);
}

/// GatedRmsNorm(x, gate, scale) -> y: rows along the last axis of float32 tensors.
template <RowFunction function>
class GatedRmsNorm {
 public:
  explicit GatedRmsNorm(const Attributes& attributes) : epsilon_(attributes.real("epsilon", 1e-5f)) {}

  void outputs(Tensors inputs, Outputs& made) const {
    demand(inputs.size() == 3, "It has the inputs x, gate and scale.");
    const OnnxOptTensor &x = inputs[0], &gate = inputs[1];
    demand(x.type == kFloat && gate.type == kFloat, "x and gate are float32.");
    if (!has_rank(x) || !has_rank(gate)) return made.add_like(has_rank(x) ? x : gate);
    demand(x.rank > 0 && x.rank == gate.rank, "x and gate have one shape, of at least one axis.");
    for (std::size_t i = 0; i < x.rank; ++i)
      demand(x.shape[i] == gate.shape[i] || x.shape[i] < 0 || gate.shape[i] < 0, "x and gate have one shape.");
    demand(is_vector_of(inputs[2], x.shape[x.rank - 1]), "scale is a float32 vector of a number for each column.");
    made.add_like(x);
  }

  void run(Tensors inputs, Tensors outputs, const OnnxOptExecution& execution) const {
    run_rows(inputs[0], floats(inputs[1]), floats(inputs[2]), epsilon_, outputs[0], function, execution);
  }

 private:
  float epsilon_;
};

/// FusedNorm where it is an RMSNorm along the last axis without anything around it; other nodes are declined.
template <RowFunction function>
class PlainRmsNorm {
 public:
  explicit PlainRmsNorm(const Attributes& attributes)
      : epsilon_(attributes.real("epsilon", 1e-5f)), scaled_(attributes.integer("scaled", 0) != 0) {
    demand(attributes.string("kind", "layer") == "rms", "It computes RMSNorm only.");
    demand(attributes.integer("axis", -1) == -1 && attributes.integer("inner", 0) == 0 && attributes.integer("groups", 0) == 0,
           "It normalizes along the last axis only.");
    demand(attributes.integer("biased", 0) == 0 && attributes.integer("kept", 0) == 0, "It has no bias and keeps nothing.");
    demand(attributes.string("prologue", "").empty() && attributes.string("epilogue", "").empty(),
           "It has no prologue and no epilogue.");
  }

  void outputs(Tensors inputs, Outputs& made) const {
    demand(inputs.size() == (scaled_ ? 2u : 1u) && inputs[0].type == kFloat && inputs[0].rank > 0,
           "Its inputs are x and the scale.");
    demand(!scaled_ || is_vector_of(inputs[1], inputs[0].shape[inputs[0].rank - 1]), "The scale has a number for each column.");
    made.add_like(inputs[0]);
  }

  void run(Tensors inputs, Tensors outputs, const OnnxOptExecution& execution) const {
    run_rows(inputs[0], nullptr, scaled_ ? floats(inputs[1]) : nullptr, epsilon_, outputs[0], function, execution);
  }

 private:
  float epsilon_;
  bool scaled_;
};

}  // namespace

using onnxopt::kernel::of;

#if defined(__x86_64__)
#define AVX2_KERNELS                                                                         \
  of<GatedRmsNorm<row_avx2>>("com.example", "GatedRmsNorm", "gated_rms_norm__avx2", "avx2"), \
      of<PlainRmsNorm<row_avx2>>("ai.onnxopt", "FusedNorm", "plain_rms_norm__avx2", "avx2"),
#else
#define AVX2_KERNELS
#endif

ONNXOPT_KERNELS(AVX2_KERNELS of<GatedRmsNorm<row_portable>>("com.example", "GatedRmsNorm", "gated_rms_norm__portable", "scalar"),
                of<PlainRmsNorm<row_portable>>("ai.onnxopt", "FusedNorm", "plain_rms_norm__portable", "scalar"))
