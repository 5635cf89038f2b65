// The kernel for rows in blocks of several warps, beside the CPU loop: exits with 0 where both have
// written the same bits.
//
// Compiled by itself, for ThreadSanitizer to tell which threads touch a row's memory at once. What
// csrc/cuda/step.cu does is done here for one matrix at a time.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cuda/row_kernel.h"

#define PROXADAM_CPU_CAPABILITY on_cpu
#include "../../csrc/cpu/update_rows.h"

using namespace proxadam;

namespace {

struct Matrix {
  std::vector<float> param, grad;
  std::vector<std::uint8_t> exp_avg, exp_avg_sq, exponents, exponents_sq;  // of either format
  std::int64_t numel;
  bool coded;

  Matrix(std::int64_t rows, int row, bool coded)
      : param(rows * row),
        grad(rows * row),
        exp_avg(rows * row * (coded ? 1 : 4)),
        exp_avg_sq(exp_avg.size()),
        exponents(rows * row / kBlock + 1, 127),
        exponents_sq(exponents.size(), 127),
        numel(rows * row),
        coded(coded) {
    std::mt19937 random(row);
    const auto uniform = [&] { return float(random() % 65536) / 65536; };
    for (std::int64_t i = 0; i < numel; ++i) {
      const float scale = i / row % 3 == 0 ? 0.01f : 1.0f;
      param[i] = scale * (uniform() - 0.5f);
      grad[i] = uniform() - 0.5f;
      const float first = uniform() - 0.5f, second = uniform();
      if (coded) {
        exp_avg[i] = std::uint8_t(random() % 64);  // small ones
        exp_avg_sq[i] = std::uint8_t(224 + random() % 16);
      } else {
        std::memcpy(&exp_avg[4 * i], &first, 4);
        std::memcpy(&exp_avg_sq[4 * i], &second, 4);
      }
    }
  }

  Buffers buffers() {
    return {param.data(), grad.data(), exp_avg.data(), exp_avg_sq.data(), nullptr};
  }

  bool operator==(const Matrix& other) const {
    return std::memcmp(param.data(), other.param.data(), 4 * numel) == 0 &&
           exp_avg == other.exp_avg && exp_avg_sq == other.exp_avg_sq &&
           exponents == other.exponents && exponents_sq == other.exponents_sq;
  }

  // (dead, alive) rows.
  std::pair<int, int> rows(int row) const {
    std::pair<int, int> found{0, 0};
    for (std::int64_t begin = 0; begin < numel; begin += row) {
      bool dead = true;
      for (int i = 0; i < row; ++i) dead = dead && param[begin + i] == 0;
      ++(dead ? found.first : found.second);
    }
    return found;
  }
};

Options options() {
  Options o{};
  o.lr.value = 0.05;
  o.beta1.value = 0.9;
  o.beta2.value = 0.99;
  o.eps.value = 1e-8;
  o.l1.value = 0.01;
  o.l2.value = 0.1;
  o.l21.value = 1.0;
  o.l1_knee.value = HUGE_VAL;
  o.max_shrink.value = 10;
  o.stochastic_state = true;
  return o;
}

constexpr double kStep = 3;
constexpr std::uint32_t kKey = 0x1234567;

void on_the_device(Matrix& matrix, int row, void (*kernel)(RowTable<float>)) {
  const Options o = options();
  const std::unique_ptr<RowTable<float>> table(new RowTable<float>{});
  table->entries = 1;
  table->chunk = 4 * 8192;  // several rows for a block, one after the other
  table->grad_bytes = 4;
  table->known[0] = {step_constants<float>(o, kStep, 1), update_of(o)};
  RowEntry& entry = table->entry[0];
  entry.buffers = matrix.buffers();
  entry.exponents = {matrix.exponents.data(), matrix.exponents_sq.data()};
  entry.step.number = kStep;
  entry.numel = matrix.numel;
  entry.tensor_key = kKey;
  entry.rounds_state = matrix.coded;
  entry.row = row;
  entry.pull = row_pull(o, row);
  table->step_kind[0] = StepKind::kNumber;

  const int rows = rows_of_chunk(table->chunk, row, sizeof(float));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((matrix.numel / row + rows - 1) / rows);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes(row, sizeof(float));
  cudaFuncAttributes attributes;
  cudaFuncGetAttributes(&attributes, kernel);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  void* arguments[] = {table.get()};
  if (cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments)) std::abort();
}

void on_the_cpu(Matrix& matrix, int row) {
  const Options o = options();
  std::vector<float> scratch(kScratch);
  const AllConstants constants{step_constants<float>(o, kStep, 1),
                               step_constants<double>(o, kStep, 1)};
  Range range{};
  range.buffers = matrix.buffers();
  range.exponents = {matrix.exponents.data(), matrix.exponents_sq.data()};
  range.types.state = matrix.coded ? ScalarType::kCode8 : ScalarType::kFloat32;
  range.stochastic = {matrix.coded, false, step_key(kKey, kStep), 0};
  range.rows = {row, row, row_pull(o, row), scratch.data()};
  range.update = update_of(o);
  range.constants = &constants;
  range.end = matrix.numel;
  on_cpu::update_rows(range);
}

bool agree(std::int64_t rows, int row, bool coded) {
  Matrix ours(rows, row, coded), theirs = ours;
  on_the_device(ours, row,
                coded ? prox_adam_rows_kernel<float, code8> : prox_adam_rows_kernel<float, float>);
  on_the_cpu(theirs, row);
  const auto [dead, alive] = ours.rows(row);
  const bool same = ours == theirs;
  std::printf("%lld x %d%s: %d dead, %d alive, %s\n", static_cast<long long>(rows), row,
              coded ? " in codes" : "", dead, alive, same ? "the same" : "NOT THE SAME");
  return same && dead && alive;
}

}  // namespace

int main() {
  bool all = true;
  // More rows than a block has at once, for the memory of one to be used for the next.
  for (const int row : {3, 40, 256, 1000, 1024}) all = agree(3 * kWarps + 1, row, false) && all;
  for (const int row : {1025, 3000, 8192}) all = agree(4, row, false) && all;
  for (const int row : {256, 1024, 1280, 8192}) all = agree(kWarps + 1, row, true) && all;
  return all ? 0 : 1;
}
