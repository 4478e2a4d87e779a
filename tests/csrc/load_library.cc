// A C++ program that uses the custom-op library as any server would: onnxruntime's shared object, our library, a model.
//
//     onnxopt_load_library LIBONNXRUNTIME LIBONNXOPT_OPS MODEL INPUT OUTPUT ROWS COLUMNS
//
// Runs the model on the numbers 0, 0.01, 0.02 ... and prints the sum of its output.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "csrc/ops/tensor.h"
#include "csrc/ort/api.h"

namespace {

const onnxopt::ort::Api* api = nullptr;

/// Ends the program with onnxruntime's sentence when a call failed.
void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) return 2;
  void* runtime = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  if (runtime == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  auto get_base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(runtime, "OrtGetApiBase"));
  const onnxopt::ort::Api functions(get_base()->GetApi(onnxopt::ort::kApiVersion));
  api = &functions;

  OrtEnv* environment = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  check(api->CreateEnv(3, "onnxopt", &environment));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 2));
  check(api->RegisterCustomOpsLibrary_V2(options, argv[2]));
  check(api->CreateSession(environment, argv[3], options, &session));

  const std::int64_t shape[] = {std::atoll(argv[6]), std::atoll(argv[7])};
  std::vector<float> data(static_cast<std::size_t>(shape[0] * shape[1]));
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = 0.01f * static_cast<float>(i);
  OrtMemoryInfo* memory = nullptr;
  OrtValue* input = nullptr;
  OrtValue* output = nullptr;
  check(api->CreateCpuMemoryInfo(0, 0, &memory));
  check(api->CreateTensorWithDataAsOrtValue(memory, data.data(), data.size() * sizeof(float), shape, 2, onnxopt::ops::kFloat,
                                            &input));
  const OrtValue* inputs[] = {input};
  const char* input_names[] = {argv[4]};
  const char* output_names[] = {argv[5]};
  check(api->Run(session, nullptr, input_names, inputs, 1, output_names, 1, &output));

  OrtTensorTypeAndShapeInfo* info = nullptr;
  std::size_t count = 0;
  void* result = nullptr;
  check(api->GetTensorTypeAndShape(output, &info));
  check(api->GetTensorShapeElementCount(info, &count));
  check(api->GetTensorMutableData(output, &result));
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += static_cast<const float*>(result)[i];
  std::printf("%zu %.6f\n", count, sum);
  return 0;
}
