// Compares branch_free.h with the compiler's own roots and divisions, float by float.

#include <cuda_runtime.h>

#include <vector>  // for vector

#include "branch_free.h"   // for BranchFree, quotient, reciprocal, square_root
#include "device.h"        // for check_cuda, DeviceGuard
#include "launch_table.h"  // for kThreads
#include "roundings.h"

namespace proxadam {
namespace {

constexpr unsigned kBlocks = 1024;

struct RoundingTable {
  RoundingCounts* counts;  // one a thread
  std::uint64_t stride;
  std::uint64_t threads;
};

PROXADAM_INLINE void judge(Roundings& counts, const BranchFree& math, float got, float expected) {
  if (math.redo || got - got != 0) return;  // what is not finite is noted later
  counts.judged += 1;
  counts.wrong += as_bits(got) != as_bits(expected);
}

// Steele, Lea and Flood's SplitMix64.
PROXADAM_INLINE std::uint64_t mixed(std::uint64_t x) {
  x = (x + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

PROXADAM_INLINE void judge_quotient(Roundings& counts, std::uint64_t random) {
  const float b = as_float(uint32_t(random >> 32) & 0x7fffffffu);
  float a = as_float(uint32_t(random));
  if (random & 1) {  // b times the middle between two floats, rounded
    const double middle = double(as_float(0x3f800000u | (uint32_t(random) >> 9))) + 0x1p-24;
    a = static_cast<float>(double(b) * middle);
  }
  BranchFree math{};
  const float got = quotient(math, a, b);
  judge(counts, math, got, a / b);
}

__global__ void __launch_bounds__(kThreads)
    count_roundings_kernel(const __grid_constant__ RoundingTable table) {
  const std::uint64_t thread = std::uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  RoundingCounts counts{};
  for (std::uint64_t i = thread * table.stride; i >> 32 == 0; i += table.threads * table.stride) {
    const float x = as_float(uint32_t(i));
    Exact exact;
    BranchFree of_root{}, of_reciprocal{};
    const float root = square_root(of_root, x);
    judge(counts.square_root, of_root, root, square_root(exact, x));
    const float inverse = reciprocal(of_reciprocal, fabsf(x));
    judge(counts.reciprocal, of_reciprocal, inverse, 1 / fabsf(x));
    judge_quotient(counts.quotient, mixed(i));
  }
  table.counts[thread] = counts;
}

void add(Roundings& sum, const Roundings& more) {
  sum.judged += more.judged;
  sum.wrong += more.wrong;
}

}  // namespace

RoundingCounts count_roundings(int device, std::uint64_t stride) {
  const DeviceGuard guard(device);
  std::vector<RoundingCounts> counts(kBlocks * kThreads);
  const std::size_t bytes = counts.size() * sizeof(RoundingCounts);
  void* on_device = nullptr;
  check_cuda(cudaMalloc(&on_device, bytes), "allocate memory for counts");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kThreads);
  RoundingTable table{static_cast<RoundingCounts*>(on_device), stride, counts.size()};
  cudaFuncAttributes attributes;
  cudaError_t status = cudaFuncGetAttributes(&attributes, count_roundings_kernel);
  if (status == cudaSuccess) {
    void* arguments[] = {&table};
    status = cudaLaunchKernelExC(&config, (const void*)count_roundings_kernel, arguments);
  }
  if (status == cudaSuccess) {
    status = cudaMemcpy(counts.data(), on_device, bytes, cudaMemcpyDeviceToHost);
  }
  cudaFree(on_device);
  check_cuda(status, "compare roundings");
  RoundingCounts sum{};
  for (const RoundingCounts& of_thread : counts) {
    add(sum.square_root, of_thread.square_root);
    add(sum.reciprocal, of_thread.reciprocal);
    add(sum.quotient, of_thread.quotient);
  }
  return sum;
}

}  // namespace proxadam
