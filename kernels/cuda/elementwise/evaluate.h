// The evaluator of one thread. The same code is compiled for the device and, for tests on any machine, for the host.
#pragma once

#include <type_traits>

#include "kernels/cuda/elementwise/code.h"

namespace onnxopt::elementwise::cuda {

/// The values of a thread's elements. A word holds a float, an integer, or 0 or 1; float16 is held as float.
template <class W, int E>
struct Lanes {
  using Word = W;
  static constexpr int kCount = E;
  W words[E];
};

template <class T, class W>
struct Held {
  static ONNXOPT_DEVICE T get(W word) { return static_cast<T>(word); }
};
template <class W>
struct Held<float, W> {
  static ONNXOPT_DEVICE float get(W word) { return bits<float>(static_cast<std::uint32_t>(word)); }
};
template <class W>
struct Held<bool, W> {
  static ONNXOPT_DEVICE bool get(W word) { return word != 0; }
};

template <class W>
ONNXOPT_DEVICE W word_of(float value) {
  return bits<std::uint32_t>(value);
}
template <class W>
ONNXOPT_DEVICE W word_of(std::int32_t value) {
  return static_cast<std::uint32_t>(value);
}
template <class W>
ONNXOPT_DEVICE W word_of(std::int64_t value) {
  return static_cast<W>(value);
}
template <class W>
ONNXOPT_DEVICE W word_of(bool value) {
  return value ? 1 : 0;
}

template <class T, class L, class F>
ONNXOPT_DEVICE L map(const L& a, F f) {
  using W = typename L::Word;
  L result;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] = word_of<W>(f(Held<T, W>::get(a.words[k])));
  return result;
}

template <class T, class L, class F>
ONNXOPT_DEVICE L map(const L& a, const L& b, F f) {
  using W = typename L::Word;
  L result;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] =
      word_of<W>(f(Held<T, W>::get(a.words[k]), Held<T, W>::get(b.words[k])));
  return result;
}

template <class T, class L, class F>
ONNXOPT_DEVICE L map(const L& a, const L& b, const L& c, F f) {
  using W = typename L::Word;
  L result;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] =
      word_of<W>(f(Held<T, W>::get(a.words[k]), Held<T, W>::get(b.words[k]), Held<T, W>::get(c.words[k])));
  return result;
}

// --- one operation ---
/// Whether values of a type are what an operation computes with, of which results fit into a word.
template <Op O, char Domain, class T, class W>
constexpr bool kTakes = O != Op::k_where && (O != Op::k_cast_i64 || sizeof(W) == sizeof(std::int64_t)) &&
                        (Domain == 'F'   ? std::is_same_v<T, float>
                         : Domain == 'B' ? std::is_same_v<T, bool>
                                         : Domain == 'A' || !std::is_same_v<T, bool>);

template <class T, class L>
ONNXOPT_DEVICE L apply(Op op, const L& a, const L& b, const L& c) {
  switch (op) {
#define ELEMENTWISE_OP(name, operands, literals, domain, result, cost)                                                  \
  case Op::k_##name:                                                                                                    \
    if constexpr (kTakes<Op::k_##name, #domain[0], T, typename L::Word>) {                                              \
      if constexpr (operands + literals == 1) return map<T>(a, [](T x) { return op_##name(x); });                       \
      if constexpr (operands + literals == 2) return map<T>(a, b, [](T x, T y) { return op_##name(x, y); });            \
      if constexpr (operands + literals == 3) return map<T>(a, b, c, [](T x, T y, T z) { return op_##name(x, y, z); }); \
    }                                                                                                                   \
    return a;
#include "kernels/cpu/elementwise/ops.inc"
#undef ELEMENTWISE_OP
  }
  return a;
}

template <class L>
ONNXOPT_DEVICE L apply(const Statement& statement, const L& a, const L& b, const L& c) {
  if (statement.op == Op::k_where) {
    L result;
    ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] = a.words[k] ? b.words[k] : c.words[k];
    return result;
  }
  switch (statement.type) {
    case DType::i32: return apply<std::int32_t>(statement.op, a, b, c);
    case DType::i64:
      if constexpr (sizeof(typename L::Word) == 8)
        return apply<std::int64_t>(statement.op, a, b, c);
      else
        return a;
    case DType::boolean: return apply<bool>(statement.op, a, b, c);
    default: return apply<float>(statement.op, a, b, c);
  }
}

// --- memory ---
/// Values that a thread keeps for later statements. Chunks of neighbouring threads lie side by side, so that the banks of shared
/// memory never conflict.
template <class L>
struct Slots {
  void* memory;
  unsigned thread, threads;

  ONNXOPT_DEVICE L get(unsigned slot) const {
    V vector;
    ONNXOPT_UNROLL for (int i = 0; i < V::kChunks; ++i) vector.chunks[i] = *at(slot, i);
    L result;
    ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) result.words[k] = vector.values[k];
    return result;
  }
  ONNXOPT_DEVICE void put(unsigned slot, const L& lanes) const {
    V vector;
    ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) vector.values[k] = lanes.words[k];
    ONNXOPT_UNROLL for (int i = 0; i < V::kChunks; ++i) * at(slot, i) = vector.chunks[i];
  }

 private:
  using V = Vector<typename L::Word, L::kCount>;
  ONNXOPT_DEVICE typename V::C* at(unsigned slot, unsigned chunk) const {
    return static_cast<typename V::C*>(memory) + ((slot * V::kChunks + chunk) * threads + thread);
  }
};

template <class L, class Code>
ONNXOPT_DEVICE L load(const Code& code, const typename Code::Input& input, std::int64_t first, int count) {
  using W = typename L::Word;
  constexpr int E = L::kCount;
  const Places<E> places = find_places<E>(code, input, first, count);
  L lanes;
  switch (input.type) {
    case DType::f16:
    case DType::bf16: {
      const auto read = read_elements<std::uint16_t, E>(input, places, count);
      const bool brain = input.type == DType::bf16;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = word_of<W>(from_two_bytes(read.values[k], brain));
      return lanes;
    }
    case DType::boolean: {
      const auto read = read_elements<std::uint8_t, E>(input, places, count);
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = word_of<W>(read.values[k] != 0);
      return lanes;
    }
    case DType::i64:
      if constexpr (sizeof(W) == 8) {
        const auto read = read_elements<std::uint64_t, E>(input, places, count);
        ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = read.values[k];
        return lanes;
      }
      [[fallthrough]];
    default: {
      const auto read = read_elements<std::uint32_t, E>(input, places, count);
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) lanes.words[k] = read.values[k];
      return lanes;
    }
  }
}

template <class L>
ONNXOPT_DEVICE void store(const Output& output, std::int64_t first, int count, const L& lanes) {
  constexpr int E = L::kCount;
  switch (output.type) {
    case DType::f16:
    case DType::bf16: {
      Vector<std::uint16_t, E> vector;
      const bool brain = output.type == DType::bf16;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] =
          to_two_bytes(bits<float>(static_cast<std::uint32_t>(lanes.words[k])), brain);
      return write_elements(output, first, count, vector);
    }
    case DType::boolean: {
      Vector<std::uint8_t, E> vector;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = static_cast<std::uint8_t>(lanes.words[k]);
      return write_elements(output, first, count, vector);
    }
    case DType::i64:
      if constexpr (sizeof(typename L::Word) == 8) {
        Vector<std::uint64_t, E> vector;
        ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = lanes.words[k];
        return write_elements(output, first, count, vector);
      }
      [[fallthrough]];
    default: {
      Vector<std::uint32_t, E> vector;
      ONNXOPT_UNROLL for (int k = 0; k < E; ++k) vector.values[k] = static_cast<std::uint32_t>(lanes.words[k]);
      return write_elements(output, first, count, vector);
    }
  }
}

// --- the program ---
template <class L, class Code>
ONNXOPT_DEVICE L read_operand(const Code& code, const Slots<L>& slots, std::uint16_t operand, const L& at_hand) {
  if (operand == Statement::kAtHand) return at_hand;
  if (operand < Statement::kScalar) return slots.get(operand);
  const auto scalar = static_cast<typename L::Word>(code.scalars[operand - Statement::kScalar]);
  L lanes;
  ONNXOPT_UNROLL for (int k = 0; k < L::kCount; ++k) lanes.words[k] = scalar;
  return lanes;
}

/// Runs statements for the elements of a thread and returns the last result. `io` has `load`, `take` and `store`, which are given
/// the number of a tensor.
template <class L, class Code, class Io>
ONNXOPT_DEVICE L run_statements(const Code& code, int begin, int end, const Slots<L>& slots, const Io& io) {
  L at_hand = {};
  for (int i = begin; i < end; ++i) {
    const Statement statement = code.statements[i];
    if (statement.kind == Statement::kStore) {
      io.store(statement.tensor, at_hand);
      continue;
    }
    if (statement.kind == Statement::kLoad) {
      at_hand = io.load(statement.tensor);
    } else if (statement.kind == Statement::kTake) {
      at_hand = io.take(statement.tensor);
    } else {
      const L a = read_operand(code, slots, statement.operands[0], at_hand);
      const L b = read_operand(code, slots, statement.operands[1], at_hand);
      const L c = read_operand(code, slots, statement.operands[2], at_hand);
      at_hand = apply(statement, a, b, c);
    }
    if (statement.rounding == Rounding::kHalf) at_hand = map<float>(at_hand, [](float x) { return round_to_half(x); });
    if (statement.rounding == Rounding::kBrain) at_hand = map<float>(at_hand, [](float x) { return round_to_brain(x); });
    if (statement.target != Statement::kNowhere) slots.put(statement.target, at_hand);
  }
  return at_hand;
}

/// The tensors of a code, from one element on. `taken` are the results of a kernel that the program is part of.
template <class L, class Code>
struct OfTensors {
  const Code& code;
  std::int64_t first;
  int count;
  const L* taken;

  ONNXOPT_DEVICE L load(int tensor) const { return cuda::load<L>(code, code.inputs[tensor], first, count); }
  ONNXOPT_DEVICE L take(int tensor) const { return taken[tensor]; }
  ONNXOPT_DEVICE void store(int tensor, const L& lanes) const { cuda::store(code.outputs[tensor], first, count, lanes); }
};

/// Runs all statements for the elements of a thread, which begin at `first`, and returns the last result.
template <class L, class Code>
ONNXOPT_DEVICE L evaluate(const Code& code, const Slots<L>& slots, std::int64_t first, const L* taken = nullptr) {
  const int count = count_from<L::kCount>(first, code.elements);
  return run_statements(code, 0, code.statement_count, slots, OfTensors<L, Code>{code, first, count, taken});
}

/// What one of `threads` threads does, which share the elements.
template <class L, class Code>
ONNXOPT_DEVICE void run_thread(const Code& code, const Slots<L>& slots, std::int64_t thread, std::int64_t threads) {
  for (std::int64_t first = thread * L::kCount; first < code.elements; first += threads * L::kCount) evaluate(code, slots, first);
}

}  // namespace onnxopt::elementwise::cuda
