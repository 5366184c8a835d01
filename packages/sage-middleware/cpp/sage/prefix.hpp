// Which engine has which blocks of prompts: per engine the least recently used ones go first. No Python.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace sage {

// Hashes of blocks to places of 32 bits: open addressing, no tombstones, at most three quarters full. `seed` keeps
// clients, which choose the hashes, from choosing where they meet.
class Places {
 public:
  static constexpr std::uint32_t none = UINT32_MAX;

  explicit Places(std::uint64_t seed) : seed_(seed) {}

  std::size_t size() const noexcept { return size_; }

  std::uint32_t find(std::uint64_t key) const noexcept {
    if (slots_.empty()) return none;
    for (std::size_t at = home(key);; at = (at + 1) & mask_) {
      if (slots_[at].place == none || slots_[at].key == key) return slots_[at].place;
    }
  }

  // A key that is not there yet.
  void add(std::uint64_t key, std::uint32_t place) {
    if (4 * (size_ + 1) > 3 * slots_.size()) grow();
    put({key, place});
    ++size_;
  }

  // A key that is there. Those behind it move up, so that no search stops too early.
  void erase(std::uint64_t key) noexcept {
    std::size_t gap = home(key);
    while (slots_[gap].key != key || slots_[gap].place == none) gap = (gap + 1) & mask_;
    for (std::size_t at = (gap + 1) & mask_; slots_[at].place != none; at = (at + 1) & mask_) {
      if (((at - home(slots_[at].key)) & mask_) >= ((at - gap) & mask_)) {
        slots_[gap] = slots_[at];
        gap = at;
      }
    }
    slots_[gap].place = none;
    --size_;
  }

 private:
  struct Slot {
    std::uint64_t key = 0;
    std::uint32_t place = none;
  };

  std::size_t home(std::uint64_t key) const noexcept {
    std::uint64_t mixed = (key ^ seed_) * 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93u;
    return static_cast<std::size_t>(mixed ^ mixed >> 32) & mask_;
  }

  void put(Slot slot) noexcept {
    std::size_t at = home(slot.key);
    while (slots_[at].place != none) at = (at + 1) & mask_;
    slots_[at] = slot;
  }

  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : 2 * slots_.size());
    old.swap(slots_);
    mask_ = slots_.size() - 1;
    for (const Slot& slot : old)
      if (slot.place != none) put(slot);
  }

  std::uint64_t seed_;
  std::vector<Slot> slots_;
  std::size_t mask_ = 0, size_ = 0;
};

// The blocks of one engine, in order of use.
class Recent {
 public:
  explicit Recent(std::uint64_t seed) : places_(seed) {}

  std::size_t size() const noexcept { return places_.size(); }

  // Use it; true if it is new.
  bool use(std::uint64_t block) {
    std::uint32_t at = places_.find(block);
    const bool fresh = at == Places::none;
    if (fresh) {
      if (free_ == Places::none) {
        at = static_cast<std::uint32_t>(nodes_.size());
        nodes_.push_back({});
      } else {
        at = free_;
        free_ = nodes_[at].next;
      }
      nodes_[at].block = block;
      places_.add(block, at);
    } else if (at == newest_) {
      return false;
    } else {
      unlink(at);
    }
    nodes_[at].prev = newest_;
    nodes_[at].next = Places::none;
    (newest_ == Places::none ? oldest_ : nodes_[newest_].next) = at;
    newest_ = at;
    return fresh;
  }

  // Forget the one that was used least recently; there is one.
  std::uint64_t pop() {
    const std::uint32_t at = oldest_;
    const std::uint64_t block = nodes_[at].block;
    unlink(at);
    nodes_[at].next = std::exchange(free_, at);
    places_.erase(block);
    return block;
  }

 private:
  struct Node {
    std::uint64_t block = 0;
    std::uint32_t prev = Places::none, next = Places::none;
  };

  void unlink(std::uint32_t at) {
    const Node& node = nodes_[at];
    (node.prev == Places::none ? oldest_ : nodes_[node.prev].next) = node.next;
    (node.next == Places::none ? newest_ : nodes_[node.next].prev) = node.prev;
  }

  Places places_;
  std::vector<Node> nodes_;
  std::uint32_t oldest_ = Places::none, newest_ = Places::none, free_ = Places::none;
};

// Engines are numbers from 0, the caller's. A set of engines is a row of bits.
class PrefixIndex {
 public:
  using Word = std::uint64_t;

  explicit PrefixIndex(std::uint64_t seed) : seed_(seed), rows_(seed) {}

  // Different blocks that some engine has.
  std::size_t size() const noexcept { return rows_.size(); }

  // An engine that uses this number from now on; the number is free, and at most as large as there are engines.
  void add(std::size_t engine, std::size_t capacity) {
    if (engine >= engines_.size()) engines_.resize(engine + 1, Engine{Recent(seed_), 0});
    if (engine / bits >= width_) widen();
    engines_[engine].capacity = capacity;
  }

  // A prompt was sent there. Its blocks are used from the last to the first, so that the oldest block of an engine
  // is always a leaf of what it has.
  void insert(std::size_t engine, std::span<const std::uint64_t> blocks) {
    Engine& one = engines_[engine];
    for (std::size_t i = std::min(blocks.size(), one.capacity); i-- > 0;)
      if (one.recent.use(blocks[i])) set(blocks[i], engine);
    evict(engine, one.capacity);
  }

  void resize(std::size_t engine, std::size_t capacity) {
    engines_[engine].capacity = capacity;
    evict(engine, capacity);
  }

  void drop(std::size_t engine) {
    evict(engine, 0);
    engines_[engine] = Engine{Recent(seed_), 0};
  }

  // For each engine that has the first of `count` blocks, calls `found(engine, how many of the leading ones)`, those
  // with fewer first. An engine has a block only with all before it: rows can only lose bits along a prompt. Few
  // blocks are looked at, so that they are asked for one by one, as `block(number)`.
  template <class Block, class Found>
  void match(std::size_t count, Block&& block, Found&& found) const {
    const std::uint32_t first = count == 0 ? Places::none : rows_.find(block(0));
    if (first == Places::none) return;
    const auto row = sets_.begin() + static_cast<std::ptrdiff_t>(first * width_);
    std::vector<Word> have(row, row + static_cast<std::ptrdiff_t>(width_)), remaining(width_);
    std::size_t start = 0;
    while (std::any_of(have.begin(), have.end(), [](Word word) { return word != 0; })) {
      // The engines of the last block of the range have all of it; else halve it towards the first loss.
      std::size_t low = start, high = count;
      while (high - low > 1) {
        const std::size_t middle = low + (high - low) / 2;
        (same(block(middle), have) ? low : high) = middle;
      }
      const std::uint32_t after = high < count ? rows_.find(block(high)) : Places::none;
      for (std::size_t word = 0; word < width_; ++word) {
        remaining[word] = after == Places::none ? 0 : have[word] & sets_[after * width_ + word];
        for (Word lost = have[word] ^ remaining[word]; lost != 0; lost &= lost - 1)
          found(word * bits + static_cast<std::size_t>(__builtin_ctzll(lost)), high);
      }
      have = remaining;
      start = high;
    }
  }

 private:
  static constexpr std::size_t bits = 64;

  struct Engine {
    Recent recent;
    std::size_t capacity;
  };

  bool same(std::uint64_t block, const std::vector<Word>& have) const {
    const std::uint32_t at = rows_.find(block);
    return at != Places::none &&
           std::equal(have.begin(), have.end(), sets_.begin() + static_cast<std::ptrdiff_t>(at * width_));
  }

  void set(std::uint64_t block, std::size_t engine) {
    std::uint32_t at = rows_.find(block);
    if (at == Places::none) {
      if (free_.empty()) {
        at = static_cast<std::uint32_t>(sets_.size() / width_);
        sets_.resize(sets_.size() + width_);
      } else {
        at = free_.back();
        free_.pop_back();
      }
      rows_.add(block, at);
    }
    sets_[at * width_ + engine / bits] |= Word{1} << engine % bits;
  }

  void evict(std::size_t engine, std::size_t capacity) {
    Recent& recent = engines_[engine].recent;
    while (recent.size() > capacity) {
      const std::uint64_t block = recent.pop();
      const std::uint32_t at = rows_.find(block);
      const auto first = sets_.begin() + static_cast<std::ptrdiff_t>(at * width_);
      first[static_cast<std::ptrdiff_t>(engine / bits)] ^= Word{1} << engine % bits;
      if (std::all_of(first, first + static_cast<std::ptrdiff_t>(width_), [](Word word) { return word == 0; })) {
        rows_.erase(block);
        free_.push_back(at);
      }
    }
  }

  // One more word for each set: more engines than the words so far have bits.
  void widen() {
    std::vector<Word> wider(sets_.size() / width_ * (width_ + 1));
    for (std::size_t at = 0; at < sets_.size(); ++at) wider[at / width_ * (width_ + 1) + at % width_] = sets_[at];
    sets_ = std::move(wider);
    ++width_;
  }

  std::uint64_t seed_;
  Places rows_;  // of `sets_`, each `width_` words
  std::size_t width_ = 1;
  std::vector<Word> sets_;
  std::vector<std::uint32_t> free_;
  std::vector<Engine> engines_;
};

}  // namespace sage
