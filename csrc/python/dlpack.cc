#include "csrc/python/dlpack.h"

#include <algorithm>

namespace py = pybind11;

namespace onnxopt::python {

namespace {

struct Device {
  std::int32_t type, number;
};
enum : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
enum : std::uint8_t { kInt = 0, kUint = 1, kFloating = 2, kBrain = 4, kBoolean = 6 };

struct ForeignTensor {
  void* data;
  Device device;
  std::int32_t rank;
  DataType type;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null where it is contiguous
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  ForeignTensor tensor;
  void* context;
  void (*release)(ManagedTensor*);
};

constexpr const char *kFresh = "dltensor", *kTaken = "used_dltensor";

int element_type(const DataType& type) {
  struct Known {
    std::uint8_t code, bits;
    int type;
  };
  constexpr Known list[] = {{kFloating, 32, ops::kFloat}, {kFloating, 16, ops::kFloat16}, {kFloating, 64, ops::kDouble},
                            {kBrain, 16, ops::kBfloat16}, {kUint, 8, ops::kUint8},        {kInt, 8, ops::kInt8},
                            {kInt, 32, ops::kInt32},      {kInt, 64, ops::kInt64},        {kBoolean, 8, ops::kBool}};
  for (const Known& one : list)
    if (type.lanes == 1 && one.code == type.code && one.bits == type.bits) return one.type;
  return -1;  // which no kernel takes
}

bool is_contiguous(const ForeignTensor& tensor) {
  if (tensor.strides == nullptr) return true;
  const std::int64_t* const end = tensor.shape + tensor.rank;
  if (std::find(static_cast<const std::int64_t*>(tensor.shape), end, 0) != end) return true;
  std::int64_t step = 1;
  for (std::int32_t axis = tensor.rank; axis-- > 0; step *= tensor.shape[axis])
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != step) return false;
  return true;
}

void release(PyObject* capsule) {
  auto* const managed = static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule, kTaken));
  if (managed != nullptr && managed->release != nullptr) managed->release(managed);
}

/// What an object exports, from here on this module's to release.
py::capsule taken(const py::handle& object, const std::string& name, bool on_device, std::uintptr_t stream) {
  constexpr std::uintptr_t kDefaultStream = 1;  // what the protocol calls CUDA's
  const py::object exported = on_device ? object.attr("__dlpack__")(py::arg("stream") = stream == 0 ? kDefaultStream : stream)
                                        : object.attr("__dlpack__")();
  if (!PyCapsule_IsValid(exported.ptr(), kFresh)) throw py::value_error(name + " exports no tensor of DLPack.");
  PyCapsule_SetName(exported.ptr(), kTaken);
  PyCapsule_SetDestructor(exported.ptr(), release);
  return py::reinterpret_borrow<py::capsule>(exported);
}

}  // namespace

bool exports_tensor(const py::handle& object) {
  return py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__");
}

Borrowed::Borrowed(const py::handle& object, const std::string& name, bool on_device, std::uintptr_t stream) {
  // Asked first: exporters of other devices do not take a stream.
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<std::int32_t, std::int32_t>>().first;
  const bool fits = on_device ? device == kCuda || device == kCudaManaged : device == kCpu || device == kCudaHost;
  if (!fits) throw py::value_error(name + " is not in the memory of " + (on_device ? "a CUDA device." : "the processor."));
  capsule_ = taken(object, name, on_device, stream);
  const ForeignTensor& given = static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), kTaken))->tensor;
  if (!is_contiguous(given)) throw py::value_error(name + " is not contiguous.");
  tensor_.type = element_type(given.type);
  tensor_.shape.assign(given.shape, given.shape + given.rank);
  tensor_.data = static_cast<const std::byte*>(given.data) + given.byte_offset;
}

}  // namespace onnxopt::python
