// Tensors of other libraries, without a copy: the part of DLPack's C ABI that is read here. It is fixed since version 0.2, and what
// exporters hand out when no newer version is asked for.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "csrc/ops/tensor.h"

namespace onnxopt::python {

/// A tensor that another object owns, which stays as long as this does.
class Borrowed {
 public:
  /// Takes what `object` exports (`__dlpack__`); `name` is what sentences call it. A device's tensor is ready for what is started
  /// on `stream` afterwards.
  Borrowed(const pybind11::handle& object, const std::string& name, bool on_device, std::uintptr_t stream = 0);

  const ops::Tensor& tensor() const { return tensor_; }

 private:
  pybind11::capsule capsule_;
  ops::Tensor tensor_;
};

/// Whether an object exports its tensor so.
bool exports_tensor(const pybind11::handle& object);

}  // namespace onnxopt::python
