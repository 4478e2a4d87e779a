// The time that kernels take on a device, and what the device can do at most: for benchmarks.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/copies.h"

namespace onnxopt::cuda {

/// The current device, measured.
struct Limits {
  std::string name;
  std::size_t cache_bytes = 0;  // of the second-level cache
  double copying = 0;           // bytes per second, read and written ones together, that a copy beyond the cache moves
  double float32 = 0;           // operations per second: multiplications and additions of all lanes at the highest clock rate
};

Result<Limits> limits();

/// How often kernels are started: bursts between two events each, on sets of tensors that take turns.
struct Rounds {
  int sets = 1, bursts = 1, starts = 1;
};

/// Copies the sources to the device once for each set, starts `rounds.starts` times before anything is measured, and returns the
/// milliseconds of a start in each burst. The targets get the results of the first set.
Result<std::vector<double>> time_on_copies(std::span<const Source> sources, std::span<const Target> targets, const Rounds& rounds,
                                           const Start& start);

}  // namespace onnxopt::cuda
