// Memory that a thread keeps from call to call.
#pragma once

#include <cstddef>

namespace onnxopt {

/// Who uses the memory: a block of one family is alive while an epilogue runs on it.
enum class ScratchOwner {
  kElementwise,
  kGemm,
  kGemmRows,
  kGemmWeights,
  kConv,
  kConvWeights,
  kConvTiles,
  kPool,
  kSqueezeExcite,
  kAttention,
  kNorm,
  kRecurrence,
  kRecurrenceChanged,
  kRecurrenceTiles,
  kRecurrenceBounds,
  kQgemm,
  kQconv,
  kQconvColumns,
  kQconvWindows,
  kQconvResults,
  kCount
};

/// Memory of the calling thread, aligned to a cache line, which the next call of the same owner may move or overwrite.
char* scratch(std::size_t bytes, ScratchOwner owner);

}  // namespace onnxopt
