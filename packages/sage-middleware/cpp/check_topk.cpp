// Runs the core under the sanitizers: g++ -std=c++20 -g -fsanitize=address,undefined check_topk.cpp && ./a.out
#include <cstdio>
#include <random>

#include "sage/topk.hpp"

namespace {

// Every size near a register's width, values with ties, NaN and infinities; against a full sort.
bool agrees(std::size_t rows, std::size_t columns, std::size_t k, sage::Metric metric, sage::Isa isa,
            std::mt19937& random) {
  std::vector<float> data(rows * columns), query(2 * columns);
  for (float& x : data) x = static_cast<float>(static_cast<int>(random() % 5) - 2);
  for (float& x : query) x = static_cast<float>(static_cast<int>(random() % 5) - 2);
  if (rows > 2 && columns > 0) {
    data[columns] = std::numeric_limits<float>::quiet_NaN();
    data[2 * columns] = std::numeric_limits<float>::infinity();
  }
  const sage::Matrix vectors{data.data(), rows, columns}, queries{query.data(), 2, columns};
  const std::size_t kept = std::min(k, rows);
  std::vector<std::int64_t> indices(2 * kept, -1), all_indices(2 * rows, -1);
  std::vector<float> scores(2 * kept), all_scores(2 * rows);
  sage::top_k(vectors, queries, k, metric, isa, indices, scores);
  sage::top_k(vectors, queries, rows + 1, metric, isa, all_indices, all_scores);
  for (std::size_t q = 0; q < 2; ++q) {
    for (std::size_t i = 0; i < kept; ++i)
      if (indices[q * kept + i] != all_indices[q * rows + i]) return false;
    for (std::size_t i = 1; i < rows; ++i)
      if (!sage::before({all_scores[q * rows + i - 1], all_indices[q * rows + i - 1]},
                        {all_scores[q * rows + i], all_indices[q * rows + i]}))
        return false;
  }
  return true;
}

}  // namespace

int main() {
  std::mt19937 random(7);
  int cases = 0;
  for (const sage::Isa isa : {sage::Isa::scalar, sage::Isa::avx2}) {
    if (!sage::supports(isa)) continue;
    for (const sage::Metric metric : {sage::Metric::inner_product, sage::Metric::cosine})
      for (const std::size_t columns : {0, 1, 3, 4, 7, 8, 9, 31, 32, 33, 63, 64, 65, 384})
        for (const std::size_t rows : {0, 1, 2, 5, 17})
          for (const std::size_t k : {1, 2, 5, 100}) {
            if (!agrees(rows, columns, k, metric, isa, random)) {
              std::printf("wrong: %zu rows, %zu columns, k=%zu\n", rows, columns, k);
              return 1;
            }
            ++cases;
          }
  }
  std::printf("%d cases agree\n", cases);
}
