#include "kernels/cpu/scratch.h"

#include <cstdint>
#include <memory>

namespace onnxopt {

char* scratch(std::size_t bytes, ScratchOwner owner) {
  constexpr std::size_t line = 64;
  struct Buffer {
    std::unique_ptr<char[]> memory;
    std::size_t size = 0;
  };
  thread_local Buffer buffers[static_cast<std::size_t>(ScratchOwner::kCount)];
  Buffer& buffer = buffers[static_cast<std::size_t>(owner)];
  if (buffer.size < bytes + line) {
    buffer.memory.reset(new char[bytes + line]());
    buffer.size = bytes + line;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.memory.get());
  return buffer.memory.get() + (line - address % line) % line;
}

}  // namespace onnxopt
