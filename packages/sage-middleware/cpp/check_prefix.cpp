// Runs the prefix index under the sanitizers, against its definition:
// g++ -std=c++20 -g -fsanitize=address,undefined -I. check_prefix.cpp && ./a.out
#include <cstdio>
#include <map>
#include <random>
#include <set>

#include "sage/prefix.hpp"

namespace {

using Blocks = std::vector<std::uint64_t>;

// Each engine's blocks with the time of their last use, deeper ones earlier.
struct Naive {
  struct Engine {
    std::map<std::uint64_t, long> used;
    std::size_t capacity = 0;
  };

  std::map<std::size_t, Engine> engines;
  long time = 0;

  void insert(std::size_t engine, const Blocks& blocks) {
    Engine& one = engines[engine];
    for (std::size_t i = std::min(blocks.size(), one.capacity); i-- > 0;) one.used[blocks[i]] = ++time;
    shrink(one);
  }

  static void shrink(Engine& one) {
    while (one.used.size() > one.capacity) {
      auto oldest = one.used.begin();
      for (auto at = one.used.begin(); at != one.used.end(); ++at)
        if (at->second < oldest->second) oldest = at;
      one.used.erase(oldest);
    }
  }

  std::map<std::size_t, std::size_t> match(const Blocks& blocks) const {
    std::map<std::size_t, std::size_t> found;
    for (const auto& [engine, one] : engines) {
      std::size_t count = 0;
      while (count < blocks.size() && one.used.contains(blocks[count])) ++count;
      if (count > 0) found[engine] = count;
    }
    return found;
  }

  std::size_t size() const {
    std::set<std::uint64_t> all;
    for (const auto& [engine, one] : engines)
      for (const auto& [block, at] : one.used) all.insert(block);
    return all.size();
  }
};

// A prompt of letters: one block for each, which stands for all before it.
Blocks prompt(std::mt19937& random) {
  Blocks blocks;
  std::uint64_t chained = 1;
  for (std::size_t left = random() % 9; left > 0; --left)
    blocks.push_back(chained = chained * 0x9e3779b97f4a7c15u + random() % 3);
  return blocks;
}

bool agrees(std::size_t engines, std::size_t capacity, int steps, std::mt19937& random) {
  sage::PrefixIndex index(random());
  Naive naive;
  for (int step = 0; step < steps; ++step) {
    const std::size_t engine = random() % engines;
    const Blocks blocks = prompt(random);
    // numbers are given without gaps, as their owner does
    while (naive.engines.size() <= engine) {
      const std::size_t next = naive.engines.size();
      index.add(next, capacity);
      naive.engines[next].capacity = capacity;
    }
    switch (random() % 8) {
      case 0:
        index.resize(engine, 2 * blocks.size());
        naive.engines[engine].capacity = 2 * blocks.size();
        Naive::shrink(naive.engines[engine]);
        break;
      case 1:
        index.drop(engine);
        index.add(engine, capacity);
        naive.engines[engine] = {{}, capacity};
        break;
      default:
        index.insert(engine, blocks);
        naive.insert(engine, blocks);
    }
    std::map<std::size_t, std::size_t> found;
    index.match(
        blocks.size(), [&](std::size_t at) { return blocks[at]; },
        [&](std::size_t one, std::size_t count) { found[one] = count; });
    if (found != naive.match(blocks) || index.size() != naive.size()) return false;
  }
  return true;
}

}  // namespace

int main() {
  std::mt19937 random(7);
  for (const std::size_t engines : {1, 3, 64, 65, 200})
    for (const std::size_t capacity : {0, 1, 5, 40})
      if (!agrees(engines, capacity, 1500, random)) {
        std::printf("wrong: %zu engines, %zu blocks each\n", engines, capacity);
        return 1;
      }
  std::printf("cases agree\n");
}
