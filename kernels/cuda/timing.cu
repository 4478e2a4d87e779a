#include "kernels/cuda/memory.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/timing.h"

namespace onnxopt::cuda {

namespace {

/// Bytes of a copy that is measured, unless the cache is larger: each way.
constexpr std::size_t kCopied = std::size_t{256} << 20;
constexpr int kCopies = 20;

struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;

Result<Event> make_event() {
  cudaEvent_t event = nullptr;
  if (const Result<bool> made = check(cudaEventCreate(&event), "make an event"); !made) return Result<Event>::failure(made.error());
  return Event(event);
}

/// Milliseconds that `work` takes on the stream.
template <class Work>
Result<double> time(cudaStream_t stream, const Work& work) {
  const Result<Event> begin = make_event(), end = make_event();
  if (!begin || !end) return Result<double>::failure(begin ? end.error() : begin.error());
  Result<bool> done = check(cudaEventRecord(begin->get(), stream), "record an event");
  if (done) done = work();
  if (done) done = check(cudaEventRecord(end->get(), stream), "record an event");
  if (done) done = check(cudaEventSynchronize(end->get()), "finish the kernels");
  float milliseconds = 0;
  if (done) done = check(cudaEventElapsedTime(&milliseconds, begin->get(), end->get()), "tell the time between events");
  return done ? Result<double>(milliseconds) : Result<double>::failure(done.error());
}

/// Lanes of a multiprocessor that multiply and add float32.
int lanes_of(int capability) { return capability == 80 ? 64 : 128; }

/// The tensors of one set, on the device.
struct Set {
  std::vector<Memory> memories;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
};

Result<Set> make_set(std::span<const Source> sources, std::span<const Target> targets) {
  Set set;
  for (const Source& source : sources) {
    Result<Memory> memory = copy_of(source);
    if (!memory) return Result<Set>::failure(memory.error());
    set.inputs.push_back(memory->get());
    set.memories.push_back(std::move(*memory));
  }
  for (const Target& target : targets) {
    Result<Memory> memory = allocate(target.bytes);
    if (!memory) return Result<Set>::failure(memory.error());
    set.outputs.push_back(memory->get());
    set.memories.push_back(std::move(*memory));
  }
  return Result<Set>(std::move(set));
}

}  // namespace

Result<Limits> limits() {
  Limits found;
  cudaDeviceProp properties{};
  int device = 0, kilohertz = 0;
  Result<bool> done = check(cudaGetDevice(&device), "tell the current device");
  if (done) done = check(cudaGetDeviceProperties(&properties, device), "describe the current device");
  if (done) done = check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device), "describe the current device");
  const Result<int> capability = onnxopt::cuda::capability();
  if (done && !capability) return Result<Limits>::failure(capability.error());
  if (!done) return Result<Limits>::failure(done.error());
  found.name = properties.name;
  found.cache_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  found.float32 = 2.0 * properties.multiProcessorCount * lanes_of(*capability) * kilohertz * 1e3;
  const std::size_t bytes = std::max(kCopied, 4 * found.cache_bytes);
  const Result<Memory> from = allocate(bytes), to = allocate(bytes);
  if (!from || !to) return Result<Limits>::failure(from ? to.error() : from.error());
  const auto copy = [&]() -> Result<bool> {
    Result<bool> copied = true;
    for (int i = 0; i < kCopies && copied; ++i)
      copied = check(cudaMemcpyAsync(to->get(), from->get(), bytes, cudaMemcpyDeviceToDevice, cudaStreamPerThread), "copy memory");
    return copied;
  };
  Result<double> milliseconds = time(cudaStreamPerThread, copy);
  if (milliseconds) milliseconds = time(cudaStreamPerThread, copy);  // the first one warms up
  if (!milliseconds) return Result<Limits>::failure(milliseconds.error());
  found.copying = 2.0 * static_cast<double>(bytes) * kCopies / (*milliseconds / 1e3);
  return found;
}

Result<std::vector<double>> time_on_copies(std::span<const Source> sources, std::span<const Target> targets, const Rounds& rounds,
                                           const Start& start) {
  using Times = Result<std::vector<double>>;
  std::vector<Set> sets;
  for (int i = 0; i < rounds.sets; ++i) {
    Result<Set> set = make_set(sources, targets);
    if (!set) return Times::failure(set.error());
    sets.push_back(std::move(*set));
  }
  std::size_t turn = 0;
  const auto burst = [&]() -> Result<bool> {
    Result<bool> started = true;
    for (int i = 0; i < rounds.starts && started; ++i, ++turn) {
      const Set& set = sets[turn % sets.size()];
      started = start(set.inputs, set.outputs, cudaStreamPerThread);
    }
    return started;
  };
  if (const Result<double> warm = time(cudaStreamPerThread, burst); !warm) return Times::failure(warm.error());
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const auto copied =
        check(cudaMemcpy(targets[i].data, sets[0].outputs[i], targets[i].bytes, cudaMemcpyDeviceToHost), "copy an output");
    if (!copied) return Times::failure(copied.error());
  }
  std::vector<double> times;
  for (int i = 0; i < rounds.bursts; ++i) {
    const Result<double> one = time(cudaStreamPerThread, burst);
    if (!one) return Times::failure(one.error());
    times.push_back(*one / rounds.starts);
  }
  return times;
}

}  // namespace onnxopt::cuda
