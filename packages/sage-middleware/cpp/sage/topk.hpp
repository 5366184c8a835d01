// Exact top-k of inner products or cosines: float32 rows against float32 queries. Header only, no Python.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SAGE_HAS_AVX2 1
#include <immintrin.h>
#else
#define SAGE_HAS_AVX2 0
#endif

namespace sage {

enum class Metric { inner_product, cosine };
enum class Isa { scalar, avx2 };

struct Hit {
  float score;
  std::int64_t index;
};

// The total order of results: greater score first, NaN behind every number, equal scores by lower index.
inline bool before(const Hit& a, const Hit& b) noexcept {
  const bool a_nan = std::isnan(a.score), b_nan = std::isnan(b.score);
  if (a_nan != b_nan) return b_nan;
  if (!a_nan && a.score != b.score) return a.score > b.score;
  return a.index < b.index;
}

using Dot = float (*)(const float*, const float*, std::size_t) noexcept;

inline float dot_scalar(const float* a, const float* b, std::size_t n) noexcept {
  // Four sums: shorter dependency chains, and the error of a pairwise sum rather than of a running one.
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    s0 += a[i] * b[i];
    s1 += a[i + 1] * b[i + 1];
    s2 += a[i + 2] * b[i + 2];
    s3 += a[i + 3] * b[i + 3];
  }
  for (; i < n; ++i) s0 += a[i] * b[i];
  return (s0 + s1) + (s2 + s3);
}

#if SAGE_HAS_AVX2
// Only this function is compiled for AVX2, so that the module loads and runs on machines without it.
__attribute__((target("avx2,fma"))) inline float dot_avx2(const float* a, const float* b,
                                                          std::size_t n) noexcept {
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
    s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
    s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
    s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
  }
  for (; i + 8 <= n; i += 8) s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
  const __m256 sum = _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3));
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  half = _mm_add_ss(half, _mm_movehdup_ps(half));
  float total = _mm_cvtss_f32(half);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}
#endif

inline bool supports(Isa isa) noexcept {
  if (isa == Isa::scalar) return true;
#if SAGE_HAS_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

inline Isa best_isa() noexcept { return supports(Isa::avx2) ? Isa::avx2 : Isa::scalar; }

inline Dot dot_for([[maybe_unused]] Isa isa) noexcept {
#if SAGE_HAS_AVX2
  if (isa == Isa::avx2) return dot_avx2;
#endif
  return dot_scalar;
}

// The best k hits seen so far, the worst of them on top of a heap.
class Best {
 public:
  explicit Best(std::size_t k) : k_(k) { heap_.reserve(k); }

  void offer(Hit hit) {
    if (heap_.size() < k_) {
      heap_.push_back(hit);
      std::push_heap(heap_.begin(), heap_.end(), before);
    } else if (before(hit, heap_.front())) {
      std::pop_heap(heap_.begin(), heap_.end(), before);
      heap_.back() = hit;
      std::push_heap(heap_.begin(), heap_.end(), before);
    }
  }

  void write(std::int64_t* indices, float* scores) {
    std::sort_heap(heap_.begin(), heap_.end(), before);
    for (std::size_t i = 0; i < heap_.size(); ++i) {
      indices[i] = heap_[i].index;
      scores[i] = heap_[i].score;
    }
  }

 private:
  std::size_t k_;
  std::vector<Hit> heap_;
};

struct Matrix {  // row-major
  const float* data;
  std::size_t rows, columns;
  const float* row(std::size_t i) const noexcept { return data + i * columns; }
};

// For each query the best min(k, rows) rows, best first, into indices and scores (queries.rows × min(k, rows)).
// The cosine with a vector of length zero is 0. Needs 1 <= k and equal columns. One thread.
inline void top_k(const Matrix& vectors, const Matrix& queries, std::size_t k, Metric metric, Isa isa,
                  std::span<std::int64_t> indices, std::span<float> scores) {
  const Dot dot = dot_for(isa);
  const std::size_t n = vectors.columns, kept = std::min(k, vectors.rows);
  if (kept == 0 || queries.rows == 0) return;
  std::vector<Best> best(queries.rows, Best(kept));
  const auto length = [&](const float* v) { return std::sqrt(dot(v, v, n)); };
  std::vector<float> query_length(queries.rows, 1.0f);
  if (metric == Metric::cosine)
    for (std::size_t q = 0; q < queries.rows; ++q) query_length[q] = length(queries.row(q));
  // Rows outside: a row is read from memory once for all queries.
  for (std::size_t r = 0; r < vectors.rows; ++r) {
    const float* row = vectors.row(r);
    const float row_length = metric == Metric::cosine ? length(row) : 1.0f;
    for (std::size_t q = 0; q < queries.rows; ++q) {
      float score = dot(row, queries.row(q), n);
      if (metric == Metric::cosine) {
        const float lengths = row_length * query_length[q];
        score = lengths == 0.0f ? 0.0f : score / lengths;
      }
      best[q].offer({score, static_cast<std::int64_t>(r)});
    }
  }
  for (std::size_t q = 0; q < queries.rows; ++q)
    best[q].write(indices.data() + q * kept, scores.data() + q * kept);
}

}  // namespace sage
