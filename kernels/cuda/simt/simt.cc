#include "kernels/cuda/simt/simt.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <memory>
#include <optional>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace onnxopt::simt {

namespace {

/// Frames of kernels are small; memory that is not touched costs nothing.
constexpr std::size_t kStackBytes = 128 * 1024;
/// Bytes behind the shared memory that have to stay as they are.
constexpr std::size_t kGuardBytes = 64;
constexpr int kGuard = 0xa5, kPoison = 0xff;

#if defined(__x86_64__)
// Registers that a function has to keep are on the stack of what waits, below its return address.
extern "C" void onnxopt_simt_switch(void** from, void* to);
asm(R"(
  .text
  .p2align 4
  .type onnxopt_simt_switch, @function
onnxopt_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size onnxopt_simt_switch, .-onnxopt_simt_switch
)");

/// Something that was left to run something else.
class Context {
 public:
  /// Runs `entry`, which must not return, on a stack.
  void start(std::byte* stack, std::size_t bytes, void (*entry)()) {
    constexpr std::size_t kKept = 6;
    auto** top = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(stack + bytes) & ~std::uintptr_t{15});
    *--top = nullptr;  // a function finds the stack 8 bytes off a multiple of 16, as after a call
    *--top = reinterpret_cast<void*>(entry);
    top -= kKept;
    std::fill_n(top, kKept, nullptr);
    stack_ = top;
  }
  static void change(Context& from, Context& to) { onnxopt_simt_switch(&from.stack_, to.stack_); }

 private:
  void* stack_ = nullptr;
};
#else
class Context {
 public:
  void start(std::byte* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    makecontext(&context_, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};
#endif

enum class State : std::uint8_t { kReady, kAtBarrier, kInWarp, kDone };

/// A copy that began, and the group that it is part of.
struct Copy {
  void* target;
  const void* source;
  std::size_t bytes, present;
  unsigned group;
};

struct Fiber {
  Thread thread;
  Context context;
  State state = State::kReady;
  unsigned number = 0, mask = 0;
  std::size_t bytes = 0;  // that it gives
  Where where;
  alignas(16) std::byte given[kMostBytes];
  std::vector<Copy> copies;
  unsigned groups = 0;  // that were committed
};

bool same(const Where& a, const Where& b) { return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0; }

std::string text_of(const Where& where) {
  const std::string_view path = where.file_name();
  return std::string(path.substr(path.rfind('/') + 1)) + ":" + std::to_string(where.line());
}

std::string text_of(const Index& index) {
  return std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z);
}

/// The alignment of shared memory.
struct alignas(16) Line {
  std::byte bytes[16];
};

class Block {
 public:
  Block(Dim3 grid, Dim3 size, std::size_t shared_bytes, const std::function<void()>& body);

  /// Runs all threads; a sentence where they could not finish.
  Result<bool> run(Index block);

  Fiber& running() { return *running_; }
  void wait() { Context::change(running_->context, scheduler_); }
  const std::byte* snapshot() const { return values_.data() + running_->number / kWarp * (kWarp * kMostBytes); }
  void fail(std::string sentence) {
    problem_ = std::move(sentence);
    wait();
  }

 private:
  static void enter();

  void start(Index block);
  void resume(Fiber& fiber);
  void run_ready();
  void finish_exchanges();
  bool is_complete(const Fiber& fiber) const;
  bool release_barrier();
  std::string describe_waiting() const;
  const Fiber* culprit_of(const Fiber& fiber) const;

  const std::function<void()>& body_;
  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<std::byte[]>> stacks_;
  std::vector<std::byte> values_;  // that were exchanged, warp by warp
  std::vector<Line> shared_;
  std::size_t shared_bytes_;
  Context scheduler_;
  Fiber* running_ = nullptr;
  unsigned left_ = 0;
  bool descending_ = false;
  std::optional<std::string> problem_;
};

thread_local Block* current = nullptr;

Block::Block(Dim3 grid, Dim3 size, std::size_t shared_bytes, const std::function<void()>& body)
    : body_(body), fibers_(std::size_t{size.x} * size.y * size.z), shared_bytes_(shared_bytes) {
  shared_.resize((shared_bytes + kGuardBytes) / sizeof(Line) + 1);
  values_.resize((fibers_.size() + kWarp - 1) / kWarp * kWarp * kMostBytes);
  for (unsigned i = 0; i < fibers_.size(); ++i) {
    fibers_[i].number = i;
    fibers_[i].thread = {{i % size.x, i / size.x % size.y, i / size.x / size.y}, {}, size, grid, shared_.data()};
    stacks_.push_back(std::unique_ptr<std::byte[]>(new std::byte[kStackBytes]));
  }
}

void Block::enter() {
  current->body_();
  current->running_->state = State::kDone;
  --current->left_;
  current->wait();
}

void Block::start(Index block) {
  auto* const memory = reinterpret_cast<std::byte*>(shared_.data());
  std::memset(memory, kPoison, shared_bytes_);
  std::memset(memory + shared_bytes_, kGuard, kGuardBytes);
  for (std::size_t i = 0; i < fibers_.size(); ++i) {
    fibers_[i].thread.block = block;
    fibers_[i].state = State::kReady;
    fibers_[i].copies.clear();
    fibers_[i].groups = 0;
    fibers_[i].context.start(stacks_[i].get(), kStackBytes, enter);
  }
  left_ = static_cast<unsigned>(fibers_.size());
}

void Block::resume(Fiber& fiber) {
  running_ = &fiber;
  Context::change(scheduler_, fiber.context);
}

void Block::run_ready() {
  const std::size_t count = fibers_.size();
  for (std::size_t i = 0; i < count && !problem_; ++i) {
    Fiber& fiber = fibers_[descending_ ? count - 1 - i : i];
    if (fiber.state == State::kReady) resume(fiber);
  }
  descending_ = !descending_;
}

/// The first thread that another one waits for and that does not wait at the same place.
const Fiber* Block::culprit_of(const Fiber& fiber) const {
  const bool in_warp = fiber.state == State::kInWarp;
  const std::size_t first = in_warp ? fiber.number / kWarp * kWarp : 0;
  const std::size_t end = in_warp ? first + kWarp : fibers_.size();
  for (std::size_t i = first; i < end; ++i) {
    if (in_warp && !(fiber.mask >> (i - first) & 1)) continue;
    if (i >= fibers_.size()) return &fiber;  // the block has no such thread
    const Fiber& other = fibers_[i];
    if (other.state != fiber.state || !same(other.where, fiber.where) || (in_warp && other.mask != fiber.mask)) return &other;
  }
  return nullptr;
}

void Block::finish_exchanges() {
  for (Fiber& fiber : fibers_) {
    if (fiber.state != State::kInWarp || culprit_of(fiber) != nullptr) continue;
    const unsigned first = fiber.number / kWarp * kWarp;
    for (unsigned lanes = fiber.mask; lanes != 0; lanes &= lanes - 1) {
      Fiber& other = fibers_[first + static_cast<unsigned>(std::countr_zero(lanes))];
      std::memcpy(values_.data() + other.number * kMostBytes, other.given, other.bytes);
      other.state = State::kReady;
    }
  }
}

bool Block::release_barrier() {
  if (fibers_.front().state != State::kAtBarrier || culprit_of(fibers_.front()) != nullptr) return false;
  for (Fiber& fiber : fibers_) fiber.state = State::kReady;
  return true;
}

/// Who waits in vain, and for whom.
std::string Block::describe_waiting() const {
  const auto waits = [](const Fiber& one) { return one.state != State::kDone; };
  const Fiber& fiber = *std::find_if(fibers_.begin(), fibers_.end(), waits);
  const Fiber& other = *culprit_of(fiber);
  const char* const kind = fiber.state == State::kInWarp ? " exchanges values at " : " waits at the barrier at ";
  std::string sentence = "Thread " + text_of(fiber.thread.thread) + kind + text_of(fiber.where) + " for thread ";
  if (&other == &fiber) return sentence + "of its warp that the block does not have.";
  sentence += text_of(other.thread.thread);
  if (other.state == State::kDone) return sentence + ", which has returned.";
  if (!same(other.where, fiber.where) || other.state != fiber.state)
    return sentence + ", which waits at " + text_of(other.where) + ".";
  return sentence + ", which names other lanes.";
}

Result<bool> Block::run(Index block) {
  start(block);
  while (left_ > 0 && !problem_) {
    run_ready();
    if (problem_ || left_ == 0) break;
    finish_exchanges();
    const bool ready = std::any_of(fibers_.begin(), fibers_.end(), [](const Fiber& fiber) { return fiber.state == State::kReady; });
    if (!ready && !release_barrier()) problem_ = describe_waiting();
  }
  const auto* const guard = reinterpret_cast<const std::byte*>(shared_.data()) + shared_bytes_;
  if (!problem_ && std::any_of(guard, guard + kGuardBytes, [](std::byte byte) { return byte != std::byte{kGuard}; }))
    problem_ = "A thread wrote behind the shared memory.";
  if (problem_) return Result<bool>::failure("Block " + text_of(block) + ": " + *problem_);
  return true;
}

}  // namespace

const Thread& self() { return current->running().thread; }

unsigned lane() { return current->running().number % kWarp; }

void wait_for_block(const Where& where) {
  Fiber& fiber = current->running();
  fiber.state = State::kAtBarrier;
  fiber.where = where;
  current->wait();
}

const std::byte* exchange(unsigned mask, const void* value, std::size_t bytes, const Where& where) {
  Fiber& fiber = current->running();
  if (!(mask >> lane() & 1)) fail("names other lanes and not its own", where);
  fiber.state = State::kInWarp;
  fiber.where = where;
  fiber.mask = mask;
  fiber.bytes = bytes;
  if (bytes > 0) std::memcpy(fiber.given, value, bytes);
  current->wait();
  return current->snapshot();
}

void begin_copy(void* target, const void* source, std::size_t bytes, std::size_t present, const Where& where) {
  for (const void* const place : {static_cast<const void*>(target), source})
    if (reinterpret_cast<std::uintptr_t>(place) % bytes != 0) fail("copies from or to a place that is not aligned", where);
  Fiber& fiber = current->running();
  fiber.copies.push_back({target, source, bytes, std::min(present, bytes), fiber.groups});
}

void commit_copies() { ++current->running().groups; }

void finish_copies(unsigned left) {
  Fiber& fiber = current->running();
  const auto ends = [&](const Copy& copy) { return copy.group + left < fiber.groups; };
  for (const Copy& copy : fiber.copies) {
    if (!ends(copy)) continue;
    std::memset(copy.target, 0, copy.bytes);
    if (copy.present > 0) std::memcpy(copy.target, copy.source, copy.present);
  }
  std::erase_if(fiber.copies, ends);
}

void fail(const char* what, const Where& where) {
  current->fail("Thread " + text_of(self().thread) + " " + what + ", at " + text_of(where) + ".");
  __builtin_unreachable();  // a launch that failed resumes no thread
}

Result<bool> launch(Dim3 grid, Dim3 size, std::size_t shared_bytes, const std::function<void()>& body) {
  const std::size_t threads = std::size_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > kMostThreads)
    return Result<bool>::failure("A block has between 1 and 1024 threads, not " + std::to_string(threads) + ".");
  Block block(grid, size, shared_bytes, body);
  Block* const before = std::exchange(current, &block);
  Result<bool> done = true;
  for (unsigned z = 0; z < grid.z && done; ++z)
    for (unsigned y = 0; y < grid.y && done; ++y)
      for (unsigned x = 0; x < grid.x && done; ++x) done = block.run({x, y, z});
  current = before;
  return done;
}

Result<bool> launch_few(std::int64_t tiles, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body) {
  constexpr std::int64_t most_blocks = 3;
  return launch({static_cast<unsigned>(std::min(tiles, most_blocks))}, {threads}, shared_bytes, body);
}

}  // namespace onnxopt::simt
