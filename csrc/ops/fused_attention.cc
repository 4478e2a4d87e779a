#include "csrc/ops/fused_attention.h"

#include <algorithm>
#include <charconv>

#include "csrc/ops/device.h"
#include "csrc/ops/layout.h"
#include "csrc/ops/two_bytes.h"
#include "csrc/ops/variants.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/sizes.h"
#include "kernels/cuda/attention/attention.h"

namespace onnxopt::ops {

namespace {

enum Axis : std::size_t { kBatch, kHead, kRow, kColumn };

/// What the attributes say.
struct Description {
  AxisLayout q, k, v, y;
  std::int64_t heads = 1, kv_heads = 1, depth = 1, width = 1;
  std::vector<attention::Mask> masks;  // without their tensors
  float scale = 1.0f, cap = 0.0f;
  bool nan_to_zero = false;
  bool rotates_q = false, rotates_k = false, interleaved = false;

  bool rotates() const { return rotates_q || rotates_k; }
  std::size_t inputs() const { return 3 + masks.size() + (rotates() ? 2 : 0); }
};

using Described = Result<Description>;

/// Reads the layouts; a sentence where one is wrong.
std::string read_layouts(const Attributes& attributes, Description& made) {
  const std::pair<const char*, AxisLayout*> list[] = {{"q", &made.q}, {"k", &made.k}, {"v", &made.v}, {"y", &made.y}};
  for (const auto& [name, layout] : list) {
    Result<AxisLayout> parsed = AxisLayout::parse(attributes.string(name).value_or("b s hd"));
    if (!parsed) return parsed.error();
    *layout = std::move(*parsed);
  }
  const auto& groups = made.y.groups();
  if (std::any_of(groups.begin(), groups.end(), [](const auto& group) { return group.part; }))
    return "Its output layout '" + made.y.text() + "' should be whole.";
  return "";
}

/// Reads what becomes of the scores by each mask, a word each; a sentence where one is wrong.
std::string read_masks(std::string_view text, std::vector<attention::Mask>& made) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size()), equals = std::min(text.find('=', at), end);
    const std::string_view word = text.substr(at, end - at), kind = text.substr(at, equals - at);
    attention::Mask mask;
    bool known = word == "add" || word == "repeat";
    if (kind == "keep" || kind == "hide") {
      mask.kind = kind == "keep" ? attention::MaskKind::kKeep : attention::MaskKind::kHide;
      const char* const last = text.data() + end;
      const auto [stop, problem] = std::from_chars(std::min(text.data() + equals + 1, last), last, mask.fill);
      known = problem == std::errc() && stop == last;
    }
    if (!known)
      return "Its attribute 'masks' has the word '" + std::string(word) +
             "' and should have add, repeat, keep=NUMBER and hide=NUMBER.";
    made.push_back(mask);
    at = end + 1;
  }
  if (made.size() > attention::kMostMasks)
    return "It has " + number(made.size()) + " masks and can have " + number(attention::kMostMasks) + ".";
  return "";
}

Described read(const Attributes& attributes) {
  Description made;
  if (std::string sentence = read_layouts(attributes, made); !sentence.empty()) return Described::failure(sentence);
  const std::pair<const char*, std::int64_t*> sizes[] = {
      {"heads", &made.heads}, {"kv_heads", &made.kv_heads}, {"head_size", &made.depth}, {"value_size", &made.width}};
  for (const auto& [name, size] : sizes) {
    *size = attributes.integer(name).value_or(0);
    if (*size < 1) return Described::failure("It needs a positive attribute '" + std::string(name) + "'.");
    if (*size > kMostSize)
      return Described::failure("Its attribute '" + std::string(name) + "' is " + number(*size) + ", too large.");
  }
  if (made.heads % made.kv_heads != 0)
    return Described::failure("Its " + number(made.heads) + " heads are no multiple of " + number(made.kv_heads) + ".");
  if (std::string sentence = read_masks(attributes.string("masks").value_or(""), made.masks); !sentence.empty())
    return Described::failure(sentence);
  made.scale = attributes.real("scale").value_or(1.0f);
  made.cap = attributes.real("softcap").value_or(0.0f);
  made.nan_to_zero = attributes.integer("nan_to_zero").value_or(0) != 0;
  const std::string rotary = attributes.string("rotary").value_or("");
  made.rotates_q = rotary.find('q') != std::string::npos;
  made.rotates_k = rotary.find('k') != std::string::npos;
  made.interleaved = attributes.integer("interleaved").value_or(0) != 0;
  return made;
}

/// The sizes of the three operands.
struct Sizes {
  Axes q, k, v;
};

attention::Steps steps_of(const Axes& axes) { return {axes[kBatch], axes[kHead], axes[kRow], axes[kColumn]}; }

template <class T>
attention::ViewOf<T> view_of(const Tensor& tensor, const AxisLayout& layout, const Axes& sizes) {
  return {static_cast<const T*>(tensor.data) + layout.offset(tensor.shape), steps_of(layout.steps(tensor.shape, sizes))};
}

/// Steps of a tensor that is broadcast to four dims; dims of size 1 have the step 0.
Axes broadcast_steps(const Shape& shape) {
  Axes steps{};
  std::int64_t step = 1;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::int64_t size = shape[shape.size() - 1 - i];
    steps[3 - i] = size == 1 ? 0 : step;
    step *= size;
  }
  return steps;
}

/// Whether a shape can be broadcast to four dims; with `repeats`, the first one may also be a divisor of the result's.
bool broadcasts(const Shape& shape, const Axes& to, bool repeats) {
  if (shape.size() > 4) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::size_t axis = 4 - shape.size() + i;
    const bool repeated = repeats && axis == kBatch && shape[i] > 0 && to[axis] % shape[i] == 0;
    if (shape[i] != 1 && shape[i] != to[axis] && !repeated) return false;
  }
  return true;
}

/// What kernels of all devices share: the sizes, and where tensors lie.
class FusedAttention : public Kernel {
 public:
  explicit FusedAttention(Description description) : d_(std::move(description)) {}

  Result<std::vector<TensorType>> outputs(std::span<const Tensor> inputs) const override {
    using Types = Result<std::vector<TensorType>>;
    if (inputs.size() != d_.inputs())
      return Types::failure("It got " + number(inputs.size()) + " inputs and needs " + number(d_.inputs()) + ".");
    const Result<Sizes> sizes = sizes_of(inputs);
    if (!sizes) return Types::failure(sizes.error());
    if (std::string sentence = wrong_mask(inputs, *sizes); !sentence.empty()) return Types::failure(sentence);
    if (std::string sentence = wrong_rotary(inputs, *sizes); !sentence.empty()) return Types::failure(sentence);
    const Axes made = result_sizes(*sizes);
    if (const Shape shape(made.begin(), made.end()); !is_countable(shape))
      return Types::failure("Its result, of the sizes " + text_of(shape) + ", is too large.");
    Shape shape = d_.y.shape(made);
    if (const Result<Axes> fits = d_.y.sizes(shape, made); !fits) return Types::failure("Its result " + fits.error() + ".");
    return std::vector<TensorType>{{inputs[0].type, std::move(shape)}};
  }

 protected:
  /// `T` are elements of all tensors but boolean masks.
  template <class T>
  attention::ProblemOf<T> problem_of(std::span<const Tensor> inputs, const TensorType& type, void* output) const {
    const Sizes sizes = *sizes_of(inputs);
    attention::ProblemOf<T> problem;
    problem.batch = sizes.q[kBatch];
    problem.heads = d_.heads;
    problem.kv_heads = d_.kv_heads;
    problem.rows = sizes.q[kRow];
    problem.keys = sizes.k[kRow];
    problem.depth = d_.depth;
    problem.width = d_.width;
    problem.q = view_of<T>(inputs[0], d_.q, sizes.q);
    problem.k = view_of<T>(inputs[1], d_.k, sizes.k);
    problem.v = view_of<T>(inputs[2], d_.v, sizes.v);
    problem.y = static_cast<T*>(output);
    problem.y_steps = steps_of(d_.y.steps(type.shape, result_sizes(sizes)));
    problem.scale = d_.scale;
    problem.cap = d_.cap;
    problem.nan_to_zero = d_.nan_to_zero;
    problem.mask_count = d_.masks.size();
    for (std::size_t i = 0; i < d_.masks.size(); ++i) problem.masks[i] = mask_of(inputs[3 + i], d_.masks[i]);
    if (d_.rotates()) problem.rotary = rotary_of<T>(inputs[3 + d_.masks.size()], inputs[4 + d_.masks.size()]);
    return problem;
  }

 private:
  Result<Sizes> sizes_of(std::span<const Tensor> inputs) const {
    using Made = Result<Sizes>;
    const AxisLayout* const layouts[] = {&d_.q, &d_.k, &d_.v};
    Axes given[] = {{-1, d_.heads, -1, d_.depth}, {-1, d_.kv_heads, -1, d_.depth}, {-1, d_.kv_heads, -1, d_.width}};
    const int own = is_of_two_bytes(inputs[0].type) ? inputs[0].type : static_cast<int>(kFloat);
    for (std::size_t i = 0; i < 3; ++i) {
      if (inputs[i].type != own)
        return Made::failure("Input " + number(i) + " is of type " + name_of(inputs[i].type) + " and should be " + name_of(own) +
                             ".");
      const Result<Axes> axes = layouts[i]->sizes(inputs[i].shape, given[i]);
      if (!axes) return Made::failure("Input " + number(i) + " " + axes.error() + ".");
      given[i] = *axes;
    }
    const auto& [q, k, v] = given;
    if (k[kBatch] != q[kBatch] || v[kBatch] != q[kBatch])
      return Made::failure("Queries, keys and values are batches of " + number(q[kBatch]) + ", " + number(k[kBatch]) + " and " +
                           number(v[kBatch]) + ".");
    if (k[kRow] != v[kRow]) return Made::failure("There are " + number(k[kRow]) + " keys and " + number(v[kRow]) + " values.");
    return Sizes{q, k, v};
  }

  Axes result_sizes(const Sizes& sizes) const { return {sizes.q[kBatch], d_.heads, sizes.q[kRow], d_.width}; }

  std::string wrong_mask(std::span<const Tensor> inputs, const Sizes& sizes) const {
    const Axes scores{sizes.q[kBatch], d_.heads, sizes.q[kRow], sizes.k[kRow]};
    for (std::size_t i = 0; i < d_.masks.size(); ++i) {
      const Tensor& mask = inputs[3 + i];
      const std::string name = "Mask " + number(i);
      const int expected = d_.masks[i].kind == attention::MaskKind::kAdd ? inputs[0].type : static_cast<int>(kBool);
      if (mask.type != expected) return name + " is of type " + name_of(mask.type) + " and should be " + name_of(expected) + ".";
      if (!broadcasts(mask.shape, scores, true))
        return name + " has the shape " + text_of(mask.shape) + ", which does not fit scores of " +
               text_of({scores.begin(), scores.end()}) + ".";
    }
    return "";
  }

  std::string wrong_rotary(std::span<const Tensor> inputs, const Sizes& sizes) const {
    if (!d_.rotates()) return "";
    for (std::size_t i = 3 + d_.masks.size(); i < inputs.size(); ++i) {
      const Tensor& table = inputs[i];
      const std::string name = i == 3 + d_.masks.size() ? "The cosines" : "The sines";
      if (table.type != inputs[0].type)
        return name + " are of type " + name_of(table.type) + " and should be " + name_of(inputs[0].type) + ".";
      const std::int64_t width = table.shape.empty() ? 0 : table.shape.back();
      if (width < 2 || width % 2 != 0 || width > d_.depth || width != inputs[3 + d_.masks.size()].shape.back())
        return name + " have " + number(width) + " columns, which do not fit heads of " + number(d_.depth) + ".";
      const bool fit_q = !d_.rotates_q || broadcasts(table.shape, {sizes.q[kBatch], d_.heads, sizes.q[kRow], width}, false);
      const bool fit_k = !d_.rotates_k || broadcasts(table.shape, {sizes.k[kBatch], d_.kv_heads, sizes.k[kRow], width}, false);
      if (!fit_q || !fit_k) return name + " have the shape " + text_of(table.shape) + ", which does not fit what they rotate.";
    }
    return "";
  }

  static attention::Mask mask_of(const Tensor& tensor, attention::Mask mask) {
    mask.data = tensor.data;
    mask.batches = tensor.shape.size() == 4 ? std::max<std::int64_t>(tensor.shape[0], 1) : 1;
    mask.steps = steps_of(broadcast_steps(tensor.shape));
    return mask;
  }

  template <class T>
  attention::RotaryOf<T> rotary_of(const Tensor& cos, const Tensor& sin) const {
    attention::RotaryOf<T> rotary;
    rotary.cos = static_cast<const T*>(cos.data);
    rotary.sin = static_cast<const T*>(sin.data);
    rotary.cos_steps = steps_of(broadcast_steps(cos.shape));
    rotary.sin_steps = steps_of(broadcast_steps(sin.shape));
    rotary.width = cos.shape.back();
    rotary.interleaved = d_.interleaved;
    rotary.of_queries = d_.rotates_q;
    rotary.of_keys = d_.rotates_k;
    return rotary;
  }

  Description d_;
};

class CpuAttention final : public FusedAttention {
 public:
  CpuAttention(Description description, const attention::Variant& variant)
      : FusedAttention(std::move(description)), variant_(variant) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    if (inputs[0].type == kFloat) {
      run_floats(inputs, types[0], outputs[0], execution);
      return true;
    }
    // Nothing is made for this but for CUDA devices: their models can be checked anywhere.
    const AsFloats floats(inputs);
    std::vector<float> y(count_of(types[0].shape));
    run_floats(floats.tensors(), types[0], y.data(), execution);
    round_to(types[0].type, y, outputs[0]);
    return true;
  }

 private:
  void run_floats(std::span<const Tensor> inputs, const TensorType& type, void* output, const Execution& execution) const {
    const attention::Problem problem = problem_of<float>(inputs, type, output);
    if (problem.keys == 0)  // a sum of no values
      std::fill_n(problem.y, problem.batch * problem.rows * problem.heads * problem.width, 0.0f);
    else
      attention::run(problem, variant_, execution.parallel_for);
  }

  const attention::Variant& variant_;
};

class CudaAttention final : public FusedAttention {
 public:
  CudaAttention(Description description, Place<attention::Problem> floats, Place<attention::cuda::Halves> halves)
      : FusedAttention(std::move(description)), floats_(floats), halves_(halves) {}

  Result<bool> run(std::span<const Tensor> inputs, std::span<const TensorType> types, std::span<void* const> outputs,
                   const Execution& execution) const override {
    const auto start = [&](std::span<const Tensor> tensors, std::span<void* const> memory, void* stream) -> Result<bool> {
      if (tensors[0].type == kFloat) return begin(problem_of<float>(tensors, types[0], memory[0]), floats_.start, stream);
      const bool brain = tensors[0].type == kBfloat16;
      return begin(attention::cuda::Halves{problem_of<std::uint16_t>(tensors, types[0], memory[0]), brain}, halves_.start, stream);
    };
    return floats_.run(inputs, types, outputs, execution, start);
  }

 private:
  template <class Problem>
  static Result<bool> begin(const Problem& problem, Start<Problem> start, void* stream) {
    return problem.batch == 0 || problem.rows == 0 ? true : start(problem, stream);
  }

  Place<attention::Problem> floats_;
  Place<attention::cuda::Halves> halves_;
};

constexpr const char* kCudaVariant = "attention__cuda";
/// The code of the CUDA kernel on the host: for tests, never chosen.
constexpr std::string_view kEmulatedVariant = "attention__cuda_emulated";

/// A kernel for a CUDA device, or its code on the host.
Result<std::unique_ptr<Kernel>> make_cuda_kernel(Description description, std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const bool emulated = name == kEmulatedVariant;
  const auto floats = place_of<attention::Problem, attention::cuda::emulate, attention::cuda::kernels>(emulated);
  if (!floats) return Made::failure(floats.error());
  const auto halves = place_of<attention::cuda::Halves, attention::cuda::emulate, attention::cuda::half_kernels>(emulated);
  if (!halves) return Made::failure(halves.error());
  return Made(std::make_unique<CudaAttention>(std::move(description), *floats, *halves));
}

/// The dim of Q that holds an axis alone, or a fresh one.
Dim dim_of(const Description& d, const InferredType& q, std::size_t axis) {
  for (std::size_t i = 0; i < d.q.groups().size() && i < q.shape.size(); ++i) {
    const auto& group = d.q.groups()[i];
    if (!group.part && group.axes == std::vector<std::size_t>{axis}) return q.shape[i];
  }
  return {-1, fresh_dim()};
}

Result<std::unique_ptr<Kernel>> create(const Attributes& attributes, std::string_view name) {
  if (name != kCudaVariant && name != kEmulatedVariant) return create_attention(attributes, attention::variants(), name);
  Described description = read(attributes);
  if (!description) return Result<std::unique_ptr<Kernel>>::failure(description.error());
  return make_cuda_kernel(std::move(*description), name);
}

}  // namespace

std::span<const char* const> attention_attributes() {
  static const char* const names[] = {"q",          "k",     "v",           "y",       "heads", "kv_heads", "head_size",
                                      "value_size", "scale", "nan_to_zero", "softcap", "masks", "rotary",   "interleaved"};
  return names;
}

Result<std::unique_ptr<Kernel>> create_attention(const Attributes& attributes, std::span<const attention::Variant> variants,
                                                 std::string_view name) {
  using Made = Result<std::unique_ptr<Kernel>>;
  const auto variant = find_variant(variants, name);
  if (!variant) return Made::failure(variant.error());
  Described description = read(attributes);
  if (!description) return Made::failure(description.error());
  return Made(std::make_unique<CpuAttention>(std::move(*description), **variant));
}

std::vector<std::optional<InferredType>> infer_attention(const Attributes& attributes, std::span<const InferredType> inputs) {
  const Described d = read(attributes);
  if (!d || inputs.empty()) return {};
  InferredType result{is_of_two_bytes(inputs[0].type) ? inputs[0].type : static_cast<int>(kFloat), {}};
  for (const auto& group : d->y.groups()) {
    Dim dim{1, ""};
    for (const std::size_t axis : group.axes) {
      const std::int64_t known = axis == kHead ? d->heads : axis == kColumn ? d->width : -1;
      if (known >= 0)
        dim.size *= known;
      else if (group.axes.size() == 1)
        dim = dim_of(*d, inputs[0], axis);
      else
        return {};
    }
    result.shape.push_back(std::move(dim));
  }
  return {result};
}

const Op& fused_attention() {
  static const std::vector<Variant> list = list_variants(attention::variants(), {{kCudaVariant, "cuda"}});
  static const Op op{"FusedAttention", attention_attributes(), list, create, infer_attention};
  return op;
}

}  // namespace onnxopt::ops
