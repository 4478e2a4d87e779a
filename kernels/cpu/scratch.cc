#include "kernels/cpu/scratch.h"

#include <cstring>
#include <memory>
#include <new>

namespace onnxopt {

namespace {

constexpr std::align_val_t kLine{64};

struct Release {
  void operator()(char* memory) const { ::operator delete(memory, kLine); }
};

#ifdef __SANITIZE_ADDRESS__
/// So that what is written beyond the end is found.
constexpr bool kExactly = true;
#else
constexpr bool kExactly = false;
#endif

}  // namespace

char* scratch(std::size_t bytes, ScratchOwner owner) {
  struct Buffer {
    std::unique_ptr<char, Release> memory;
    std::size_t size = 0;
  };
  thread_local Buffer buffers[static_cast<std::size_t>(ScratchOwner::kCount)];
  Buffer& buffer = buffers[static_cast<std::size_t>(owner)];
  if (!buffer.memory || (kExactly ? buffer.size != bytes : buffer.size < bytes)) {
    buffer.memory.reset();
    buffer.size = 0;
    buffer.memory.reset(static_cast<char*>(::operator new(bytes, kLine)));
    std::memset(buffer.memory.get(), 0, bytes);
    buffer.size = bytes;
  }
  return buffer.memory.get();
}

}  // namespace onnxopt
