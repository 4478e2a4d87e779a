// Weights in the order in which kernels read them: moving elements into panels, in memory or straight into a file.
#pragma once

#include <cstddef>

namespace onnxopt::panels {

/// Elements by column, row and tap; the steps are bytes.
struct Source {
  const std::byte* data;
  std::size_t element_size, columns, rows, taps;
  std::ptrdiff_t column_step, row_step, tap_step;
};

/// The order [ceil(columns / width), taps, rows, width], missing columns being zero.
struct Layout {
  std::size_t width, panels, lines_of_panel, line_bytes;

  Layout(const Source& source, std::size_t width)
      : width(width),
        panels((source.columns + width - 1) / width),
        lines_of_panel(source.taps * source.rows),
        line_bytes(width * source.element_size) {}
  std::size_t bytes() const { return panels * lines_of_panel * line_bytes; }
};

/// Whether elements of that many bytes can be moved.
bool takes(std::size_t element_size);

/// Write all panels to `target`.
void fill(const Source& source, const Layout& layout, std::byte* target);

/// Append all panels to an open file, blocks of about that many bytes at a time, each thread its own; returns 0 or what went wrong
/// (errno).
int append(const Source& source, const Layout& layout, int file, std::size_t block_bytes, std::size_t threads);

}  // namespace onnxopt::panels
