// SPDX-License-Identifier: Apache-2.0
// Sums are taken in double and rounded to float before anything is compared, so that a choice depends on the
// values and not on the order of additions.
#include "token_prune/cpu/kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/divide.h"
#include "common/order.h"

namespace fastmmoe {
namespace {

using namespace token_prune;

constexpr int64_t kRowsPerItem = 64;
constexpr int64_t kWindowsPerItem = 16;

// Sizes within the contract's limits make no offset, in bytes, that wraps; where they did, this would not
// compile.
constexpr int64_t kMostFloats = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(sizeof(float));
static_assert(kMostT * kMostH <= kMostFloats && kMostV * kMostE <= kMostFloats, "rows of tokens");
static_assert(kMostT <= std::numeric_limits<int32_t>::max(), "indices");

struct Window {
  int64_t first, length;
};

// A surviving visual token; merged_length 0: kept as it is, else it stands for its window.
struct Survivor {
  int64_t source, merged_length;
};

// The inputs after clean-up: a row with a value that is not finite counts as zeros.
struct Visual {
  std::vector<uint8_t> is_bad;        // [V]
  std::vector<const float*> routing;  // [V] rows of [E]
  std::vector<float> attention;       // [V]
  std::vector<float> zeros;           // [E]
};

bool all_finite(const float* values, int64_t count) {
  return std::all_of(values, values + count, [](float v) { return std::isfinite(v); });
}

Visual clean(const TokenPruneParams& params) {
  Visual visual{std::vector<uint8_t>(params.V), std::vector<const float*>(params.V),
                std::vector<float>(params.V), std::vector<float>(params.E, 0.0f)};
  for (int64_t i = 0; i < params.V; ++i) {
    const float* row = params.routing_probs + i * params.E;
    visual.is_bad[i] = !all_finite(row, params.E);
    visual.routing[i] = visual.is_bad[i] ? visual.zeros.data() : row;
    const bool counts = !visual.is_bad[i] && std::isfinite(params.attention[i]);
    visual.attention[i] = counts ? params.attention[i] : 0.0f;
  }
  return visual;
}

// Consecutive tokens of a run of visual_index without a gap; the last window of a run may be shorter.
std::vector<Window> split_windows(const TokenPruneParams& params) {
  std::vector<Window> windows;
  for (int64_t i = 0; i < params.V; ++i) {
    const bool in_run = i > 0 && params.visual_index[i] == params.visual_index[i - 1] + 1;
    if (in_run && windows.back().length < params.attributes.window) {
      ++windows.back().length;
    } else {
      windows.push_back({i, 1});
    }
  }
  return windows;
}

// Mean [size] of `count` rows of which row(i) gives the address.
template <typename Row>
std::vector<float> mean_of(int64_t count, int64_t size, const Row& row) {
  std::vector<double> sums(size, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    const float* values = row(i);
    for (int64_t j = 0; j < size; ++j) sums[j] += values[j];
  }
  std::vector<float> mean(size);
  for (int64_t j = 0; j < size; ++j) mean[j] = static_cast<float>(sums[j] / static_cast<double>(count));
  return mean;
}

double dot(const float* a, const float* b, int64_t size) {
  double sum = 0.0;
  for (int64_t j = 0; j < size; ++j) sum += static_cast<double>(a[j]) * b[j];
  return sum;
}

float norm(const float* values, int64_t size) {
  return static_cast<float>(std::sqrt(dot(values, values, size)));
}

// Mean cosine of a window's rows with their mean; a short window is filled up with the mean of all rows.
float redundancy(const TokenPruneParams& params, const Visual& visual, const std::vector<float>& mean_of_all,
                 const Window& window) {
  if (window.length == 1) return 0.0f;
  const std::vector<float> mean = mean_of(params.attributes.window, params.E, [&](int64_t i) {
    return i < window.length ? visual.routing[window.first + i] : mean_of_all.data();
  });
  const double mean_square = dot(mean.data(), mean.data(), params.E);
  double sum = 0.0;
  for (int64_t i = window.first; i < window.first + window.length; ++i) {
    const float* row = visual.routing[i];
    const double norms = std::sqrt(dot(row, row, params.E) * mean_square);
    sum += dot(row, mean.data(), params.E) / std::max(norms, kCosineFloor);
  }
  return static_cast<float>(sum / static_cast<double>(window.length));
}

// Mean attention of every window over the greatest of them.
std::vector<float> importance(const Visual& visual, const std::vector<Window>& windows) {
  std::vector<float> values;
  for (const Window& window : windows) {
    const auto first = visual.attention.begin() + window.first;
    const double sum = std::accumulate(first, first + window.length, 0.0);
    values.push_back(static_cast<float>(sum) / static_cast<float>(window.length));
  }
  const float greatest = *std::max_element(values.begin(), values.end());
  for (float& value : values) value /= greatest + kImportanceFloor;
  return values;
}

std::vector<float> score_windows(const TokenPruneParams& params, const Visual& visual,
                                 const std::vector<Window>& windows, const ParallelFor& parallel_for) {
  const std::vector<float> mean_of_all =
      mean_of(params.V, params.E, [&](int64_t i) { return visual.routing[i]; });
  std::vector<float> scores = importance(visual, windows);
  const float alpha = *params.alpha;
  const int64_t G = static_cast<int64_t>(windows.size());
  parallel_for(divide_up(G, kWindowsPerItem), [&](int64_t item) {
    const int64_t end = std::min(G, (item + 1) * kWindowsPerItem);
    for (int64_t g = item * kWindowsPerItem; g < end; ++g) {
      scores[g] = alpha * redundancy(params, visual, mean_of_all, windows[g]) - (1.0f - alpha) * scores[g];
    }
  });
  return scores;
}

// The survivors of one sequence in their order.
std::vector<Survivor> choose(const TokenPruneParams& params, const ParallelFor& parallel_for) {
  const Visual visual = clean(params);
  const std::vector<Window> windows = split_windows(params);
  const std::vector<float> scores = score_windows(params, visual, windows, parallel_for);
  std::vector<int64_t> order(windows.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return is_better(scores[a], scores[b]); });

  std::vector<Survivor> survivors;
  std::vector<uint8_t> is_merged(params.V, 0);
  for (int64_t i = 0; i < params.M; ++i) {
    const Window& window = windows[order[i]];
    std::fill_n(is_merged.begin() + window.first, window.length, 1);
    survivors.push_back({window.first, window.length});
  }
  std::vector<int64_t> singles;
  for (int64_t i = 0; i < params.V; ++i) {
    if (!is_merged[i]) singles.push_back(i);
  }
  // A cleaned token sorts after every other, whatever their attention.
  std::stable_sort(singles.begin(), singles.end(), [&](int64_t a, int64_t b) {
    if (visual.is_bad[a] != visual.is_bad[b]) return visual.is_bad[a] < visual.is_bad[b];
    return visual.attention[a] > visual.attention[b];
  });
  for (int64_t i = 0; i < params.K - params.M; ++i) survivors.push_back({singles[i], 0});
  std::sort(survivors.begin(), survivors.end(),
            [](const Survivor& a, const Survivor& b) { return a.source < b.source; });
  return survivors;
}

// The same parameters with the visual tokens of sequence b alone; rows and outputs stay those of all.
TokenPruneParams part_of(const TokenPruneParams& params, int64_t b) {
  TokenPruneParams part = params;
  const int64_t first = params.visual_offsets[b];
  part.V = params.visual_offsets[b + 1] - first;
  part.K = params.keep_offsets[b + 1] - params.keep_offsets[b];
  part.M = params.merge_offsets[b + 1] - params.merge_offsets[b];
  part.routing_probs += first * params.E;
  part.attention += first;
  part.visual_index += first;
  return part;
}

// The K survivors of all sequences in their order.
std::vector<Survivor> choose_each(const TokenPruneParams& params, const ParallelFor& parallel_for) {
  std::vector<Survivor> survivors;
  for (int64_t b = 0; b < params.B; ++b) {
    const TokenPruneParams part = part_of(params, b);
    const int64_t first = params.visual_offsets[b];
    if (part.K == part.V) {
      for (int64_t i = 0; i < part.V; ++i) survivors.push_back({first + i, 0});
      continue;
    }
    for (const Survivor& survivor : choose(part, parallel_for)) {
      survivors.push_back({first + survivor.source, survivor.merged_length});
    }
  }
  return survivors;
}

// Writes kept_index and visual_index_out.
void index_rows(const TokenPruneParams& params, const std::vector<Survivor>& survivors) {
  int64_t visual = 0, survivor = 0, out = 0;
  for (int64_t t = 0; t < params.T; ++t) {
    const bool is_visual = visual < params.V && params.visual_index[visual] == t;
    const bool survives = is_visual && survivor < params.K && survivors[survivor].source == visual;
    visual += is_visual;
    if (is_visual && !survives) continue;
    if (survives) params.visual_index_out[survivor++] = static_cast<int32_t>(out);
    params.kept_index[out++] = static_cast<int32_t>(t);
  }
}

// One row [H] for a merged window whose rows start at token `first`; a window's rows are consecutive.
void merge_rows(const TokenPruneParams& params, const float* rows, int64_t length, float* out) {
  const int64_t H = params.H;
  const std::vector<float> mean = mean_of(length, H, [&](int64_t i) { return rows + i * H; });
  float divisor = 1.0f, greatest = 1.0f;
  if (params.attributes.merge == Merge::kMlerp) {
    divisor = std::max(norm(mean.data(), H), kNormFloor);
    greatest = 0.0f;
    for (int64_t i = 0; i < length; ++i) greatest = std::max(greatest, norm(rows + i * H, H));
  }
  for (int64_t j = 0; j < H; ++j) out[j] = mean[j] / divisor * greatest;
}

void write_rows(const TokenPruneParams& params, const std::vector<Survivor>& survivors, const void* states,
                void* states_out, const ParallelFor& parallel_for) {
  const float* from = static_cast<const float*>(states);
  float* to = static_cast<float*>(states_out);
  const int64_t H = params.H, rows = params.T - params.V + params.K;
  parallel_for(divide_up(rows, kRowsPerItem), [&](int64_t item) {
    const int64_t end = std::min(rows, (item + 1) * kRowsPerItem);
    for (int64_t r = item * kRowsPerItem; r < end; ++r)
      std::copy_n(from + params.kept_index[r] * H, H, to + r * H);
  });
  for (int64_t i = 0; i < params.K; ++i) {
    const int64_t length = survivors[i].merged_length, row = params.visual_index_out[i];
    if (length > 0) merge_rows(params, from + params.kept_index[row] * H, length, to + row * H);
  }
}

}  // namespace

void token_prune_cpu(const TokenPruneParams& params, const ParallelFor& parallel_for) {
  if (params.K == params.V) {
    const size_t bytes = sizeof(float) * static_cast<size_t>(params.T * params.H);
    std::copy_n(static_cast<const char*>(params.hidden_states), bytes,
                static_cast<char*>(params.hidden_states_out));
    std::copy_n(static_cast<const char*>(params.residual), bytes, static_cast<char*>(params.residual_out));
    std::iota(params.kept_index, params.kept_index + params.T, 0);
    std::copy_n(params.visual_index, params.V, params.visual_index_out);
    return;
  }
  const std::vector<Survivor> survivors = choose_each(params, parallel_for);
  index_rows(params, survivors);
  write_rows(params, survivors, params.hidden_states, params.hidden_states_out, parallel_for);
  write_rows(params, survivors, params.residual, params.residual_out, parallel_for);
}

}  // namespace fastmmoe
