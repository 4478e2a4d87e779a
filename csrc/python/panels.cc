#include "csrc/python/panels.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace onnxopt::panels {
namespace {

/// What lies together in the file: several whole panels, or some rows of one tap of one panel.
struct Block {
  std::size_t first_panel, panels, first_tap, taps, first_row, rows;

  std::size_t lines() const { return panels * taps * rows; }
};

std::vector<Block> blocks_of(const Source& source, const Layout& layout, std::size_t block_bytes) {
  std::vector<Block> blocks;
  const std::size_t lines = std::max<std::size_t>(1, block_bytes / std::max<std::size_t>(1, layout.line_bytes));
  if (const std::size_t panels = lines / std::max<std::size_t>(1, layout.lines_of_panel); panels > 0) {
    for (std::size_t panel = 0; panel < layout.panels; panel += panels)
      blocks.push_back({panel, std::min(panels, layout.panels - panel), 0, source.taps, 0, source.rows});
    return blocks;
  }
  for (std::size_t panel = 0; panel < layout.panels; ++panel)
    for (std::size_t tap = 0; tap < source.taps; ++tap)
      for (std::size_t row = 0; row < source.rows; row += lines)
        blocks.push_back({panel, 1, tap, 1, row, std::min(lines, source.rows - row)});
  return blocks;
}

struct Wide {
  std::uint64_t low, high;
};

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));  // ranges of files are not aligned
  return value;
}

/// Columns that lie together are moved as one piece.
template <typename T>
void copy_lines(const Source& source, const Layout& layout, const Block& block, T* target) {
  const std::size_t width = layout.width;
  for (std::size_t tap = 0; tap < block.taps; ++tap)
    for (std::size_t row = 0; row < block.rows; ++row) {
      const std::byte* line = source.data + static_cast<std::ptrdiff_t>(block.first_row + row) * source.row_step +
                              static_cast<std::ptrdiff_t>(block.first_tap + tap) * source.tap_step;
      for (std::size_t panel = 0; panel < block.panels; ++panel) {
        const std::size_t column = (block.first_panel + panel) * width;
        const std::size_t count = std::min(width, source.columns - column);
        T* to = target + ((panel * block.taps + tap) * block.rows + row) * width;
        constexpr std::size_t kUsual = 16;
        if (count == kUsual)
          std::memcpy(to, line + column * sizeof(T), kUsual * sizeof(T));
        else
          std::memcpy(to, line + column * sizeof(T), count * sizeof(T));
        std::fill(to + count, to + width, T{});
      }
    }
}

constexpr std::size_t kTileColumns = 16, kTileLines = 256;

/// Column `column` of a tile: its elements of some rows and all taps of a block, in the order of the source.
template <typename T>
void read_column(const Source& source, const std::byte* from, std::size_t rows, std::size_t taps, T* column) {
  const bool together = source.row_step == static_cast<std::ptrdiff_t>(taps * sizeof(T)) &&
                        (taps == 1 || source.tap_step == static_cast<std::ptrdiff_t>(sizeof(T)));
  if (together) {
    constexpr std::size_t kLine = 64, kAhead = 2;
    const std::size_t count = rows * taps;
    for (std::size_t i = 0; i < count; i += kLine / sizeof(T)) {
      // Columns lie far from each other, so that the processor does not see which one is read next.
      __builtin_prefetch(from + i * sizeof(T) + static_cast<std::ptrdiff_t>(kAhead) * source.column_step);
      for (std::size_t j = i; j < std::min(count, i + kLine / sizeof(T)); ++j)
        column[j * kTileColumns] = load<T>(from + j * sizeof(T));
    }
    return;
  }
  for (std::size_t row = 0; row < rows; ++row, from += source.row_step)
    for (std::size_t tap = 0; tap < taps; ++tap, column += kTileColumns)
      *column = load<T>(from + static_cast<std::ptrdiff_t>(tap) * source.tap_step);
}

/// Tiles are turned in a buffer that stays in the cache, so that lines of the cache are read and written whole.
template <typename T>
void turn_lines(const Source& source, const Layout& layout, const Block& block, T* target) {
  const std::size_t width = layout.width, taps = block.taps, tile_rows = std::max<std::size_t>(1, kTileLines / taps);
  std::vector<T> tile(tile_rows * taps * kTileColumns);
  const std::byte* first = source.data + static_cast<std::ptrdiff_t>(block.first_tap) * source.tap_step;
  for (std::size_t panel = 0; panel < block.panels; ++panel)
    for (std::size_t offset = 0; offset < width; offset += kTileColumns)
      for (std::size_t row = 0; row < block.rows; row += tile_rows) {
        const std::size_t rows = std::min(tile_rows, block.rows - row), columns = std::min(kTileColumns, width - offset);
        const std::size_t column = (block.first_panel + panel) * width + offset;
        const std::size_t there = column < source.columns ? std::min(columns, source.columns - column) : 0;
        if (there < columns) std::fill(tile.begin(), tile.end(), T{});
        for (std::size_t i = 0; i < there; ++i)
          read_column(source,
                      first + static_cast<std::ptrdiff_t>(column + i) * source.column_step +
                          static_cast<std::ptrdiff_t>(block.first_row + row) * source.row_step,
                      rows, taps, tile.data() + i);
        for (std::size_t tap = 0; tap < taps; ++tap)
          for (std::size_t j = 0; j < rows; ++j) {
            T* to = target + ((panel * taps + tap) * block.rows + row + j) * width + offset;
            const T* line = &tile[(j * taps + tap) * kTileColumns];
            if (columns == kTileColumns)
              std::memcpy(to, line, kTileColumns * sizeof(T));
            else
              std::memcpy(to, line, columns * sizeof(T));
          }
      }
}

template <typename T>
void fill_as(const Source& source, const Layout& layout, const Block& block, std::byte* target) {
  if (source.column_step == static_cast<std::ptrdiff_t>(sizeof(T)))
    copy_lines(source, layout, block, reinterpret_cast<T*>(target));
  else
    turn_lines(source, layout, block, reinterpret_cast<T*>(target));
}

void fill_block(const Source& source, const Layout& layout, const Block& block, std::byte* target) {
  switch (source.element_size) {
    case 1: return fill_as<std::uint8_t>(source, layout, block, target);
    case 2: return fill_as<std::uint16_t>(source, layout, block, target);
    case 4: return fill_as<std::uint32_t>(source, layout, block, target);
    case 8: return fill_as<std::uint64_t>(source, layout, block, target);
    default: return fill_as<Wide>(source, layout, block, target);
  }
}

int write_at(int file, const std::byte* data, std::size_t count, off_t position) {
  while (count > 0) {
    const ssize_t written = pwrite(file, data, count, position);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return written < 0 ? errno : EIO;
    data += written, count -= static_cast<std::size_t>(written), position += written;
  }
  return 0;
}

/// Memory of blocks that threads have filled before: fresh pages cost as much as the work.
class Pool {
 public:
  using Memory = std::vector<std::byte>;

  Memory take(std::size_t bytes) {
    Memory memory;
    {
      const std::lock_guard lock(mutex_);
      if (!kept_.empty()) {
        memory = std::move(kept_.back());
        kept_.pop_back();
      }
    }
    if (memory.size() < bytes) memory.resize(bytes);
    return memory;
  }

  void give_back(Memory memory) {
    const std::lock_guard lock(mutex_);
    if (kept_.size() < kMost && memory.size() <= kLargest) kept_.push_back(std::move(memory));
  }

 private:
  static constexpr std::size_t kMost = 4, kLargest = std::size_t{8} << 20;
  std::mutex mutex_;
  std::vector<Memory> kept_;
};

Pool& pool() {
  static Pool one;
  return one;
}

off_t position_of(const Layout& layout, const Block& block, const Source& source) {
  const std::size_t line = (block.first_panel * source.taps + block.first_tap) * source.rows + block.first_row;
  return static_cast<off_t>(line * layout.line_bytes);
}

}  // namespace

bool takes(std::size_t element_size) {
  return element_size == 1 || element_size == 2 || element_size == 4 || element_size == 8 || element_size == sizeof(Wide);
}

void fill(const Source& source, const Layout& layout, std::byte* target) {
  if (layout.bytes() > 0) fill_block(source, layout, {0, layout.panels, 0, source.taps, 0, source.rows}, target);
}

int append(const Source& source, const Layout& layout, int file, std::size_t block_bytes, std::size_t threads) {
  if (layout.bytes() == 0) return 0;
  const off_t start = lseek(file, 0, SEEK_CUR);
  if (start < 0) return errno;
  const std::vector<Block> blocks = blocks_of(source, layout, block_bytes);
  std::size_t most = 0;
  for (const Block& block : blocks) most = std::max(most, block.lines() * layout.line_bytes);
  std::atomic<std::size_t> next{0};
  std::atomic<int> failed{0};
  const auto work = [&] {
    // A block is filled and written by the same thread: the kernel copies it out of the cache.
    Pool::Memory memory;
    try {
      memory = pool().take(most);
    } catch (const std::bad_alloc&) {
      failed = ENOMEM;
    }
    for (std::size_t i = next++; i < blocks.size() && failed == 0; i = next++) {
      fill_block(source, layout, blocks[i], memory.data());
      const std::size_t count = blocks[i].lines() * layout.line_bytes;
      if (const int error = write_at(file, memory.data(), count, start + position_of(layout, blocks[i], source))) failed = error;
    }
    pool().give_back(std::move(memory));
  };
  std::vector<std::thread> others;
  try {
    for (std::size_t i = 1; i < std::min(threads, blocks.size()); ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
    // Fewer threads do as well.
  }
  work();
  for (std::thread& thread : others) thread.join();
  if (failed != 0) return failed;
  return lseek(file, start + static_cast<off_t>(layout.bytes()), SEEK_SET) < 0 ? errno : 0;
}

}  // namespace onnxopt::panels
