#include "kernels/cpu/recurrence/statement.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/recurrence/text.h"

namespace onnxopt::recurrence {

namespace {

using Words = std::span<const std::string_view>;

constexpr std::array<std::string_view, 9> kReductions = {"max", "min", "sum", "mean", "l1", "l2", "squares", "prod", "logsumexp"};
constexpr std::array<std::string_view, 6> kMoves = {"reshape", "squeeze", "unsqueeze", "transpose", "slice", "expand"};

template <std::size_t N>
std::size_t index_in(const std::array<std::string_view, N>& names, std::string_view name) {
  return static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

/// Reads the words of one statement.
class Reader {
 public:
  Reader(std::string_view text, std::size_t known, std::size_t matrices) : text_(text), known_(known), matrices_(matrices) {}

  Result<Statement> read() {
    std::vector<std::string_view> parts = split(text_, ' ');
    std::erase(parts, std::string_view());
    sentence_ = "'" + std::string(text_) + "' is no statement of its step.";
    if (parts.empty() || !read_words(parts[0], Words(parts).subspan(1))) return Result<Statement>::failure(sentence_);
    return std::move(made_);
  }

 private:
  bool read_words(std::string_view name, Words rest) {
    const std::size_t reduction = index_in(kReductions, name), move = index_in(kMoves, name);
    if (name == "map") return read_map();
    if (name == "product") return read_product(rest);
    if (name == "matmul") return is(Statement::kMatmul) && rest.size() == 2 && values(rest);
    if (name == "slice_at")
      return is(Statement::kSlice) && rest.size() == 5 && value(rest[0]) && numbers(rest.subspan(1, 1)) &&
             values(rest.subspan(2, 2)) && numbers(rest.subspan(4));
    if (name == "conv") return read_convolution(rest);
    if (name == "concat") return is(Statement::kConcat) && rest.size() > 1 && numbers(rest.first(1)) && values(rest.subspan(1));
    if (name == "gather")
      return is(Statement::kGather) && rest.size() == 3 && value(rest[0]) && numbers(rest.subspan(1, 1)) && value(rest[2]);
    if (name == "element")
      return is(Statement::kElement) && rest.size() == 3 && value(rest[0]) && numbers(rest.subspan(1, 1)) &&
             flag(rest[2], made_.reverse);
    if (name == "softmax" || name == "logsoftmax" || name == "layer") return read_norm(name, rest);
    if (name == "topk" || name == "topkplace") return read_sorted(name, rest);
    if (name == "scatter") return is(Statement::kScatter) && rest.size() == 3 && values(rest);
    if (name == "argmax" || name == "argmin") {
      made_.largest = name == "argmax";
      return is(Statement::kArgument) && rest.size() == 3 && read_reduced(rest);
    }
    if (reduction < kReductions.size()) {
      made_.reduction = static_cast<Reduction>(reduction);
      return is(Statement::kReduction) && read_reduced(rest);
    }
    if (name == "reshape_as" || name == "expand_as") {
      made_.move = name == "reshape_as" ? Move::kReshape : Move::kExpand;
      return is(Statement::kView) && rest.size() == 2 && values(rest);
    }
    made_.move = static_cast<Move>(move);
    return move < kMoves.size() && is(Statement::kView) && !rest.empty() && value(rest[0]) && numbers(rest.subspan(1));
  }

  bool is(Statement::Kind kind) {
    made_.kind = kind;
    return true;
  }

  bool value(std::string_view word) {
    made_.operands.push_back(0);
    return read_number(word, known_, made_.operands.back());
  }

  bool values(Words words) {
    return std::all_of(words.begin(), words.end(), [&](std::string_view word) { return value(word); });
  }

  bool numbers(Words words) {
    return std::all_of(words.begin(), words.end(), [&](std::string_view word) {
      made_.numbers.push_back(0);
      return read_whole(word, made_.numbers.back());
    });
  }

  template <class T>
  static bool read_whole(std::string_view word, T& number) {
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    return error == std::errc() && end == word.data() + word.size();
  }

  static bool flag(std::string_view word, bool& set) {
    std::size_t number = 0;
    const bool read = read_number(word, 2, number);
    set = number != 0;
    return read;
  }

  bool read_map() {
    const std::size_t mark = text_.find('!');
    if (mark == text_.npos) return false;
    std::vector<std::string_view> before = split(text_.substr(0, mark), ' ');
    std::erase(before, std::string_view());
    if (!values(Words(before).subspan(1))) return false;
    Result<elementwise::Program> program = elementwise::Program::parse(text_.substr(mark + 1));
    if (!program || program->is_for_devices()) {
      sentence_ = "Its step: " + (program ? std::string(elementwise::kForDevices) : program.error());
      return false;
    }
    made_.program = std::move(*program);
    made_.results = made_.program.outputs().size();
    return made_.program.inputs().size() == made_.operands.size();
  }

  bool read_product(Words rest) {
    if (rest.size() < 2 || rest.size() > 3 || !value(rest[0])) return false;
    return is(Statement::kProduct) && read_number(rest[1], matrices_, made_.matrix) && values(rest.subspan(2));
  }

  /// For each dim a stride, a dilation and two paddings.
  bool read_convolution(Words rest) {
    std::size_t dims = 0;
    if (rest.empty() || !read_number(rest[0], 3, dims) || dims == 0) return false;
    const std::size_t count = 1 + 4 * dims;
    if (rest.size() < count + 3 || rest.size() > count + 4) return false;
    return is(Statement::kConvolution) && numbers(rest.subspan(1, count)) && values(rest.subspan(1 + count));
  }

  bool read_reduced(Words rest) {
    return rest.size() > 1 && value(rest[0]) && flag(rest[1], made_.keep_dims) && numbers(rest.subspan(2));
  }

  bool read_sorted(std::string_view name, Words rest) {
    made_.places = name == "topkplace";
    if (rest.size() != 4 || !value(rest[0]) || !read_whole(rest[1], made_.count) || made_.count < 0) return false;
    return is(Statement::kSorted) && numbers(rest.subspan(2, 1)) && flag(rest[3], made_.largest);
  }

  bool read_norm(std::string_view name, Words rest) {
    const bool layer = name == "layer";
    made_.norm = layer ? norm::Kind::kLayer : name == "softmax" ? norm::Kind::kSoftmax : norm::Kind::kLogSoftmax;
    if (rest.size() < (layer ? 3u : 2u) || rest.size() > (layer ? 5u : 2u) || !value(rest[0])) return false;
    if (layer && (!read_whole(rest[2], made_.epsilon) || !values(rest.subspan(3)))) return false;
    return is(Statement::kNormalize) && numbers(rest.subspan(1, 1));
  }

  std::string_view text_;
  std::size_t known_, matrices_;
  std::string sentence_;
  Statement made_;
};

}  // namespace

Result<Statement> read_statement(std::string_view text, std::size_t known, std::size_t matrices) {
  return Reader(text, known, matrices).read();
}

}  // namespace onnxopt::recurrence
