// CUDA source to machine code while a program runs: NVIDIA's NVRTC, which is looked for when it is needed first.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/common.h"

namespace onnxopt::cuda::nvrtc {

/// A file of source that others include by its name.
struct SourceFile {
  const char* name;
  const char* text;
};

struct Compiler {
  int major = 0, minor = 0;        // of NVRTC
  std::vector<int> architectures;  // that it knows, ascending: 80 is sm_80
};

/// The NVRTC of this process, or a sentence that says why there is none. ONNXOPT_NVRTC is the path of its shared library, or "off";
/// without it the dynamic linker looks for the library's usual names, of which the newest wins.
Result<Compiler> compiler();

/// What is made of a source: machine code for one architecture, or PTX, which the driver compiles for newer ones.
struct Target {
  int architecture = 0;
  bool machine_code = false;
};

/// The target for a device of a compute capability (90 is 9.0), of architectures up to `most`: PTX where NVRTC is older than the
/// device. A sentence where NVRTC knows no architecture that the device runs.
Result<Target> target_for(const Compiler& compiler, int capability, int most);

/// Compiles, or takes what was compiled before from the disk (see cache.h).
Result<std::string> compile(const std::string& source, std::span<const SourceFile> headers, const Target& target);

}  // namespace onnxopt::cuda::nvrtc
