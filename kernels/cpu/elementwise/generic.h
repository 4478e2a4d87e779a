// The executor: one template, instantiated once per instruction set. The including file defines `struct V` (vectors of float and
// their masks) in an unnamed namespace, so that no code is shared between files that are compiled with different flags.
//
// A domain of elements is cut into tiles of a few hundred; a tile runs through all statements before the next one starts, so that
// intermediate values never leave the first-level cache. Tiles are whole vectors: the last elements of a row are computed in a
// padded copy by the same vector code, hence results do not depend on where tiles or threads begin.

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/cpu/elementwise/chain.h"
#include "kernels/cpu/scratch.h"

namespace onnxopt::elementwise {
namespace {

/// Elements of a row from which on tiles do not cross rows, so that broadcast operands need no copy.
constexpr std::size_t kLongRow = 64;
/// Bytes of an element in a tensor.
constexpr std::size_t stored_size(DType type) {
  return type == DType::f16 ? 2 : type == DType::i64 ? 8 : type == DType::boolean ? 1 : 4;
}

/// Bytes of an element in a register: float16 is computed in float.
constexpr std::size_t computed_size(DType type) { return type == DType::f16 ? 4 : stored_size(type); }

// --- one statement over a tile, for types and operations without vector code of our own: the compiler vectorizes these loops
// --------
struct Call {
  void* target;
  Place sources[3];
};

/// A scalar operand is a loop of its own.
template <typename T, typename R, typename Body>
inline void loop1(const Call& call, std::size_t n, Body body) {
  auto* x = static_cast<const T*>(call.sources[0].data);
  auto* y = static_cast<R*>(call.target);
  if (call.sources[0].scalar) {
    const R value = body(*x);
    for (std::size_t i = 0; i < n; ++i) y[i] = value;
  } else {
    for (std::size_t i = 0; i < n; ++i) y[i] = body(x[i]);
  }
}

template <typename T, typename R, typename Body>
inline void loop2(const Call& call, std::size_t n, Body body) {
  auto* a = static_cast<const T*>(call.sources[0].data);
  auto* b = static_cast<const T*>(call.sources[1].data);
  auto* y = static_cast<R*>(call.target);
  const bool va = !call.sources[0].scalar, vb = !call.sources[1].scalar;
  if (va && vb) {
    for (std::size_t i = 0; i < n; ++i) y[i] = body(a[i], b[i]);
  } else if (va) {
    const T right = *b;
    for (std::size_t i = 0; i < n; ++i) y[i] = body(a[i], right);
  } else if (vb) {
    const T left = *a;
    for (std::size_t i = 0; i < n; ++i) y[i] = body(left, b[i]);
  } else {
    const R value = body(*a, *b);
    for (std::size_t i = 0; i < n; ++i) y[i] = value;
  }
}

template <typename T>
inline void select_loop(const Call& call, std::size_t n) {
  auto* c = static_cast<const std::uint8_t*>(call.sources[0].data);
  auto* a = static_cast<const T*>(call.sources[1].data);
  auto* b = static_cast<const T*>(call.sources[2].data);
  auto* y = static_cast<T*>(call.target);
  const std::size_t sc = !call.sources[0].scalar, sa = !call.sources[1].scalar, sb = !call.sources[2].scalar;
  if (sc && sa && sb) {
    for (std::size_t i = 0; i < n; ++i) y[i] = c[i] ? a[i] : b[i];
  } else {
    for (std::size_t i = 0; i < n; ++i) y[i] = c[i * sc] ? a[i * sa] : b[i * sb];
  }
}

template <typename T>
inline void clip_loop(const Call& call, std::size_t n) {
  auto* x = static_cast<const T*>(call.sources[0].data);
  auto* low = static_cast<const T*>(call.sources[1].data);
  auto* high = static_cast<const T*>(call.sources[2].data);
  auto* y = static_cast<T*>(call.target);
  const std::size_t sx = !call.sources[0].scalar, sl = !call.sources[1].scalar, sh = !call.sources[2].scalar;
  for (std::size_t i = 0; i < n; ++i) {
    T raised = x[i * sx] < low[i * sl] ? low[i * sl] : x[i * sx];
    y[i] = high[i * sh] < raised ? high[i * sh] : raised;
  }
}

template <typename T>
using Unsigned = std::make_unsigned_t<T>;

/// Integer arithmetic wraps, as two's complement hardware does; division by zero gives zero and never traps.
template <typename T>
inline T wrap_add(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
}
template <typename T>
inline T wrap_sub(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
}
template <typename T>
inline T wrap_mul(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) * static_cast<Unsigned<T>>(b));
}
template <typename T>
inline T safe_div(T a, T b) {
  if (b == 0) return 0;
  return b == -1 ? wrap_sub<T>(0, a) : static_cast<T>(a / b);
}

/// A float to an integer as x86 converts it: what does not fit becomes the lowest integer.
template <typename T>
inline T to_integer(float x) {
  constexpr float limit = sizeof(T) == 4 ? 2147483648.0f : 9223372036854775808.0f;
  return x >= -limit && x < limit ? static_cast<T>(x) : std::numeric_limits<T>::min();
}

template <typename T>
bool integer_call(Op op, const Call& call, std::size_t n) {
  switch (op) {
    case Op::k_neg: loop1<T, T>(call, n, [](T x) { return wrap_sub<T>(0, x); }); return true;
    case Op::k_abs: loop1<T, T>(call, n, [](T x) { return x < 0 ? wrap_sub<T>(0, x) : x; }); return true;
    case Op::k_sign: loop1<T, T>(call, n, [](T x) { return static_cast<T>((x > 0) - (x < 0)); }); return true;
    case Op::k_add: loop2<T, T>(call, n, wrap_add<T>); return true;
    case Op::k_sub: loop2<T, T>(call, n, wrap_sub<T>); return true;
    case Op::k_mul: loop2<T, T>(call, n, wrap_mul<T>); return true;
    case Op::k_div: loop2<T, T>(call, n, safe_div<T>); return true;
    case Op::k_min: loop2<T, T>(call, n, [](T a, T b) { return b < a ? b : a; }); return true;
    case Op::k_max: loop2<T, T>(call, n, [](T a, T b) { return a < b ? b : a; }); return true;
    case Op::k_clip: clip_loop<T>(call, n); return true;
    case Op::k_cast_f32:
    case Op::k_cast_f16: loop1<T, float>(call, n, [](T x) { return static_cast<float>(x); }); return true;
    case Op::k_cast_i32: loop1<T, std::int32_t>(call, n, [](T x) { return static_cast<std::int32_t>(x); }); return true;
    case Op::k_cast_i64: loop1<T, std::int64_t>(call, n, [](T x) { return static_cast<std::int64_t>(x); }); return true;
    default: return false;
  }
}

template <typename T>
bool comparison_call(Op op, const Call& call, std::size_t n) {
  using B = std::uint8_t;
  switch (op) {
    case Op::k_equal: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a == b); }); return true;
    case Op::k_less: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a < b); }); return true;
    case Op::k_less_equal: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a <= b); }); return true;
    case Op::k_greater: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a > b); }); return true;
    case Op::k_greater_equal: loop2<T, B>(call, n, [](T a, T b) { return static_cast<B>(a >= b); }); return true;
    case Op::k_cast_bool: loop1<T, B>(call, n, [](T x) { return static_cast<B>(x != 0); }); return true;
    case Op::k_where: select_loop<T>(call, n); return true;
    default: return false;
  }
}

bool boolean_call(Op op, const Call& call, std::size_t n) {
  using B = std::uint8_t;
  switch (op) {
    case Op::k_and: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) & (b != 0)); }); return true;
    case Op::k_or: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) | (b != 0)); }); return true;
    case Op::k_xor: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) ^ (b != 0)); }); return true;
    case Op::k_equal: loop2<B, B>(call, n, [](B a, B b) { return static_cast<B>((a != 0) == (b != 0)); }); return true;
    case Op::k_not: loop1<B, B>(call, n, [](B x) { return static_cast<B>(x == 0); }); return true;
    case Op::k_cast_f32:
    case Op::k_cast_f16: loop1<B, float>(call, n, [](B x) { return x ? 1.0f : 0.0f; }); return true;
    case Op::k_cast_i32: loop1<B, std::int32_t>(call, n, [](B x) { return static_cast<std::int32_t>(x != 0); }); return true;
    case Op::k_cast_i64: loop1<B, std::int64_t>(call, n, [](B x) { return static_cast<std::int64_t>(x != 0); }); return true;
    default: return comparison_call<B>(op, call, n);
  }
}

bool float_call(Op op, const Call& call, std::size_t n) {
  switch (op) {
    case Op::k_pow: loop2<float, float>(call, n, [](float a, float b) { return std::pow(a, b); }); return true;
    case Op::k_isnan: loop1<float, std::uint8_t>(call, n, [](float x) { return static_cast<std::uint8_t>(x != x); }); return true;
    case Op::k_isinf:
      loop1<float, std::uint8_t>(
          call, n, [](float x) { return static_cast<std::uint8_t>(std::fabs(x) == std::numeric_limits<float>::infinity()); });
      return true;
    case Op::k_cast_i32: loop1<float, std::int32_t>(call, n, to_integer<std::int32_t>); return true;
    case Op::k_cast_i64: loop1<float, std::int64_t>(call, n, to_integer<std::int64_t>); return true;
    default: return comparison_call<float>(op, call, n);
  }
}

void execute(const Step& step, const Call& call, std::size_t n) {
  switch (step.type) {
    case DType::f32:
    case DType::f16: float_call(step.op, call, n); break;
    case DType::i32:
      if (!integer_call<std::int32_t>(step.op, call, n)) comparison_call<std::int32_t>(step.op, call, n);
      break;
    case DType::i64:
      if (!integer_call<std::int64_t>(step.op, call, n)) comparison_call<std::int64_t>(step.op, call, n);
      break;
    case DType::boolean: boolean_call(step.op, call, n); break;
    case DType::bf16: break;  // programs with it are not run
  }
  if (step.result == DType::f16) {
    auto* values = static_cast<float*>(call.target);
    for (std::size_t i = 0; i < n; i += W) V::store(values + i, V::round_to_half(V::load(values + i)));
  }
}

/// Runs `n` elements, whole vectors, through all statements of a schedule.
void run_statements(const Schedule& schedule, const Place* table, std::size_t n) {
  const Step* const end = schedule.steps + schedule.step_count;
  for (const Step* step = schedule.steps; step != end;) {
    if (step->chain > 0) {
      run_chain(step, step + step->chain, table, n);
      step += step->chain;
      continue;
    }
    Call call{table[step->target].data, {}};
    for (int k = 0; k < 3; ++k)
      if (step->operands[k] != Step::kAtHand) call.sources[k] = table[step->operands[k]];
    execute(*step++, call, n);
  }
}

/// float16 to float and back; what is left after whole vectors goes one by one.
inline void widen(const std::uint16_t* source, float* target, std::size_t n) {
  std::size_t i = 0;
  for (; i + W <= n; i += W) V::store(target + i, V::load_half(source + i));
  for (; i < n; ++i) target[i] = V::from_half(source[i]);
}

inline void narrow(const float* source, std::uint16_t* target, std::size_t n) {
  std::size_t i = 0;
  for (; i + W <= n; i += W) V::store_half(target + i, V::load(source + i));
  for (; i < n; ++i) target[i] = V::to_half(source[i]);
}

// --- the domain ----------------------------------------------------------------------------------------------------
/// Everything one thread needs: registers, splat operands, and copies of operands that cannot be read in place.
class Worker {
 public:
  explicit Worker(const Plan& plan)
      : plan_(plan),
        schedule_(*plan.schedule),
        memory_(scratch(plan.schedule->register_count * kSlot, ScratchOwner::kElementwise)) {
    for (std::size_t i = 0; i < plan.input_count; ++i)
      if (plan.inputs[i].used) table_[i] = plan.inputs[i].scalar ? splat_input(i) : Place{slot(i), false};
    for (std::size_t i = 0; i < plan.literal_count; ++i) {
      const Literal& literal = plan.literals[i];
      table_[plan.input_count + i] = fill(slot(plan.input_count + i), &literal.f, computed_size(literal.type));
    }
    for (std::size_t i = 0; i < schedule_.step_count; ++i) {
      const std::uint16_t target = schedule_.steps[i].target;
      if (target != Step::kNowhere) table_[target] = {slot(target), false};
    }
  }

  /// Computes elements [begin, end) of the domain in its order.
  void run(std::int64_t begin, std::int64_t end) {
    const bool long_rows = plan_.row >= static_cast<std::int64_t>(kLongRow);
    while (begin < end) {
      std::int64_t count = end - begin;
      if (count > static_cast<std::int64_t>(kTile)) count = static_cast<std::int64_t>(kTile);
      if (long_rows && count > plan_.row - begin % plan_.row) count = plan_.row - begin % plan_.row;
      const std::int64_t whole = count / static_cast<std::int64_t>(W) * static_cast<std::int64_t>(W);
      if (whole > 0) tile(begin, whole, long_rows, true);
      if (whole < count) tile(begin + whole, count - whole, long_rows, false);
      begin += count;
    }
  }

 private:
  char* slot(std::size_t place) { return memory_ + schedule_.registers[place] * kSlot; }

  static Place fill(char* target, const void* value, std::size_t size) {
    for (std::size_t i = 0; i < W; ++i) std::memcpy(target + i * size, value, size);
    return {target, true};
  }

  Place splat_input(std::size_t index) {
    const PlanInput& input = plan_.inputs[index];
    if (input.type != DType::f16) return fill(slot(index), input.data, computed_size(input.type));
    std::uint16_t half;
    std::memcpy(&half, input.data, 2);
    const float widened = V::from_half(half);
    return fill(slot(index), &widened, sizeof widened);
  }

  void tile(std::int64_t begin, std::int64_t count, bool in_row, bool whole) {
    const std::size_t padded = (static_cast<std::size_t>(count) + W - 1) / W * W;
    for (std::size_t i = 0; i < plan_.input_count; ++i)
      if (plan_.inputs[i].used && !plan_.inputs[i].scalar) table_[i].data = load(i, begin, count, in_row, whole);
    const bool apart = plan_.window && !in_row;  // the tile's elements are not neighbours in the outputs
    const bool in_place = whole && !apart;
    for (std::size_t i = 0; i < plan_.output_count; ++i)
      if (plan_.outputs[i].direct) table_[plan_.outputs[i].place].data = in_place ? target(i, begin) : slot(plan_.outputs[i].place);
    run_statements(schedule_, table_, padded);
    for (std::size_t i = 0; i < plan_.output_count; ++i) {
      if (apart)
        store_across(i, begin, count);
      else
        store_output(i, table_[plan_.outputs[i].place].data, begin, count);
    }
  }

  char* target(std::size_t output, std::int64_t begin) const {
    const PlanOutput& one = plan_.outputs[output];
    const std::int64_t offset = plan_.window ? begin / plan_.row * one.row_step + begin % plan_.row : begin;
    return one.data + offset * static_cast<std::int64_t>(stored_size(one.type));
  }

  /// Where the elements of an input lie: in place if they are whole vectors as they are computed with, else in a copy.
  void* load(std::size_t index, std::int64_t begin, std::int64_t count, bool in_row, bool whole) {
    const PlanInput& input = plan_.inputs[index];
    char* copy = slot(index);
    if (!in_row) {
      gather_across(copy, input, begin, count);
      return copy;
    }
    const std::int64_t stride = input.strides[plan_.rank - 1];
    const std::int64_t offset = offset_of(input, begin / plan_.row) + begin % plan_.row * stride;
    if (stride == 1 && whole && input.type != DType::f16)
      return const_cast<char*>(input.data) + offset * static_cast<std::int64_t>(stored_size(input.type));
    gather(copy, input, offset, stride, count);
    return copy;
  }

  /// Offset of the first element of a row.
  std::int64_t offset_of(const PlanInput& input, std::int64_t row) const {
    std::int64_t offset = 0;
    for (std::size_t axis = plan_.rank - 1; axis-- > 0;) {
      offset += row % plan_.dims[axis] * input.strides[axis];
      row /= plan_.dims[axis];
    }
    return offset;
  }

  /// Copies elements of several short rows, one after the other.
  void gather_across(char* copy, const PlanInput& input, std::int64_t begin, std::int64_t count) {
    const std::size_t width = computed_size(input.type);
    const std::int64_t stride = input.strides[plan_.rank - 1];
    std::int64_t row = begin / plan_.row, within = begin % plan_.row;
    // Rows of the dim before the last are found by steps: a division for each would take longer than its elements.
    const std::int64_t step = plan_.rank > 1 ? input.strides[plan_.rank - 2] : 0;
    const std::int64_t together = plan_.rank > 1 ? plan_.dims[plan_.rank - 2] : 1;
    std::int64_t left = together - row % together;
    std::int64_t offset = offset_of(input, row);
    const bool whole_vectors = plan_.row % static_cast<std::int64_t>(W) == 0 && within == 0 && stride <= 1;
    if (whole_vectors && (input.type == DType::f32 || input.type == DType::i32)) {
      gather_vectors(reinterpret_cast<float*>(copy), input, row, count / plan_.row);
      const std::int64_t rows = count / plan_.row;
      copy += static_cast<std::size_t>(rows * plan_.row) * width;
      count -= rows * plan_.row;
      row += rows;
      if (count == 0) return;
      left = together - row % together;
      offset = offset_of(input, row);
    }
    const bool words = stride <= 1 && (input.type == DType::f32 || input.type == DType::i32);
    while (count > 0) {
      const std::int64_t part = count < plan_.row - within ? count : plan_.row - within;
      if (words)
        gather_words(reinterpret_cast<float*>(copy), reinterpret_cast<const float*>(input.data) + offset + within * stride,
                     stride == 0, part);
      else
        gather(copy, input, offset + within * stride, stride, part);
      copy += static_cast<std::size_t>(part) * width;
      count -= part;
      within = 0;
      ++row;
      offset += step;
      if (--left == 0) {
        left = together;
        offset = offset_of(input, row);
      }
    }
  }

  /// Copies whole rows of whole vectors of four-byte elements, each row one value or one stretch.
  void gather_vectors(float* target, const PlanInput& input, std::int64_t row, std::int64_t rows) {
    const bool one_value = input.strides[plan_.rank - 1] == 0;
    const std::int64_t step = plan_.rank > 1 ? input.strides[plan_.rank - 2] : 0;
    const std::int64_t together = plan_.rank > 1 ? plan_.dims[plan_.rank - 2] : 1;
    while (rows > 0) {
      const std::int64_t some = rows < together - row % together ? rows : together - row % together;
      const float* source = reinterpret_cast<const float*>(input.data) + offset_of(input, row);
      for (std::int64_t i = 0; i < some; ++i, source += step)
        for (std::int64_t j = 0; j < plan_.row; j += static_cast<std::int64_t>(W), target += W)
          V::store(target, one_value ? V::set1(*source) : V::load(source + j));
      row += some;
      rows -= some;
    }
  }

  /// A few elements of four bytes, neighbours or one value. Whole vectors are written: what comes next is written later.
  static void gather_words(float* target, const float* source, bool one_value, std::int64_t count) {
    for (std::int64_t j = 0; j < count; j += static_cast<std::int64_t>(W)) {
      const auto left = static_cast<std::size_t>(count - j);
      V::store(target + j, one_value ? V::set1(*source) : left < W ? V::load_first(source + j, left) : V::load(source + j));
    }
  }

  static void gather(char* copy, const PlanInput& input, std::int64_t offset, std::int64_t stride, std::int64_t count) {
    switch (input.type) {
      case DType::f32:
      case DType::i32: gather_as<std::uint32_t>(copy, input.data, offset, stride, count); break;
      case DType::i64: gather_as<std::uint64_t>(copy, input.data, offset, stride, count); break;
      case DType::boolean: gather_as<std::uint8_t>(copy, input.data, offset, stride, count); break;
      case DType::f16: {
        auto* source = reinterpret_cast<const std::uint16_t*>(input.data) + offset;
        auto* target = reinterpret_cast<float*>(copy);
        if (stride == 1)
          widen(source, target, static_cast<std::size_t>(count));
        else
          for (std::int64_t i = 0; i < count; ++i) target[i] = V::from_half(source[i * stride]);
        break;
      }
      case DType::bf16: break;  // programs with it are not run
    }
  }

  template <typename T>
  static void gather_as(char* copy, const char* data, std::int64_t offset, std::int64_t stride, std::int64_t count) {
    const T* source = reinterpret_cast<const T*>(data) + offset;
    T* target = reinterpret_cast<T*>(copy);
    if (stride == 1) {
      // A loop, not a call: these are a few elements.
      for (std::int64_t i = 0; i < count; ++i) target[i] = source[i];
    } else if (stride == 0) {
      const T value = *source;
      for (std::int64_t i = 0; i < count; ++i) target[i] = value;
    } else {
      for (std::int64_t i = 0; i < count; ++i) target[i] = source[i * stride];
    }
  }

  /// Writes elements of several short rows, one after the other.
  void store_across(std::size_t index, std::int64_t begin, std::int64_t count) {
    const PlanOutput& output = plan_.outputs[index];
    const char* held = static_cast<const char*>(table_[output.place].data);
    while (count > 0) {
      const std::int64_t within = plan_.row - begin % plan_.row;
      const std::int64_t part = count < within ? count : within;
      store_output(index, held, begin, part);
      held += static_cast<std::size_t>(part) * computed_size(output.type);
      begin += part;
      count -= part;
    }
  }

  void store_output(std::size_t index, const void* held, std::int64_t begin, std::int64_t count) {
    const PlanOutput& output = plan_.outputs[index];
    char* wanted = target(index, begin);
    if (held == wanted) return;
    if (output.type == DType::f16)
      narrow(static_cast<const float*>(held), reinterpret_cast<std::uint16_t*>(wanted), static_cast<std::size_t>(count));
    else
      std::memcpy(wanted, held, static_cast<std::size_t>(count) * stored_size(output.type));
  }

  const Plan& plan_;
  const Schedule& schedule_;
  char* memory_;
  Place table_[Program::kMaxInputs + kMaxLiterals + Program::kMaxStatements];
};

}  // namespace

namespace ONNXOPT_VARIANT {

void run(const Plan& plan, std::int64_t begin, std::int64_t end) { Worker(plan).run(begin, end); }

void run_tile(const Schedule& schedule, const Place* table, std::size_t n) { run_statements(schedule, table, n); }

}  // namespace ONNXOPT_VARIANT
}  // namespace onnxopt::elementwise
