// Chained hashes of the 256-byte blocks of a text, and the canonical text of a JSON value. No Python.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "json.hpp"

namespace sage {

using CrcTables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr CrcTables make_crc_tables() {
  CrcTables made{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1u)));
    made[0][i] = crc;
  }
  for (std::size_t table = 1; table < 8; ++table)
    for (std::size_t i = 0; i < 256; ++i)
      made[table][i] = made[table - 1][i] >> 8 ^ made[0][made[table - 1][i] & 0xff];
  return made;
}

inline constexpr CrcTables crc_tables = make_crc_tables();

// CRC-32 as zlib computes it, eight bytes a step.
inline std::uint32_t crc32(const char* data, std::size_t size) noexcept {
  const auto byte = [&](int i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(data[i])); };
  const CrcTables& t = crc_tables;
  std::uint32_t crc = 0xffffffffu;
  for (; size >= 8; size -= 8, data += 8) {  // little-endian, whatever the machine is
    const std::uint32_t low = crc ^ (byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24);
    crc = t[7][low & 0xff] ^ t[6][low >> 8 & 0xff] ^ t[5][low >> 16 & 0xff] ^ t[4][low >> 24];
    crc ^= t[3][byte(4)] ^ t[2][byte(5)] ^ t[1][byte(6)] ^ t[0][byte(7)];
  }
  for (; size > 0; --size, ++data) crc = crc >> 8 ^ t[0][(crc ^ byte(0)) & 0xff];
  return ~crc;
}

// Takes a text piece by piece; `blocks` then holds a hash for each whole block, which covers all before it.
class BlockHasher {
 public:
  static constexpr std::size_t block = 256;

  explicit BlockHasher(std::vector<std::uint64_t>& blocks) : blocks_(blocks) { blocks_.clear(); }

  void put(std::string_view text) {
    if (filled_ > 0) {
      const std::size_t part = std::min(block - filled_, text.size());
      std::memcpy(buffer_ + filled_, text.data(), part);
      filled_ += part;
      text.remove_prefix(part);
      if (filled_ < block) return;
      chain(buffer_);
      filled_ = 0;
    }
    for (; text.size() >= block; text.remove_prefix(block)) chain(text.data());
    if (!text.empty()) std::memcpy(buffer_, text.data(), filled_ = text.size());
  }

  void put(char c) { put(std::string_view(&c, 1)); }

 private:
  void chain(const char* data) {
    chained_ = chained_ * 0x9e3779b97f4a7c15u + crc32(data, block);  // odd, 2^64 / golden ratio
    blocks_.push_back(chained_);
  }

  std::vector<std::uint64_t>& blocks_;
  std::uint64_t chained_ = 1;
  std::size_t filled_ = 0;
  char buffer_[block];
};

// Writes scanned values the one way in which a value is written: no blanks, names sorted by their bytes, what
// need not be escaped is not.
class Canonical {
 public:
  Canonical(std::string_view text, const Tape& tape, BlockHasher& out) : text_(text), tape_(tape), out_(out) {}

  // False for what it has no certain form for: a number with a fraction, an object that names something twice.
  bool write(std::size_t place) {
    const Value& value = tape_[place];
    switch (value.kind) {
      case Kind::real:
        return false;
      case Kind::string:
        quoted(value);
        return true;
      case Kind::array:
        return elements(place);
      case Kind::object:
        return members(place);
      default:
        out_.put(text_of(text_, value));
        return true;
    }
  }

 private:
  bool elements(std::size_t place) {
    out_.put('[');
    for (std::size_t at = place + 1; at < tape_[place].next; at = tape_[at].next) {
      if (at > place + 1) out_.put(',');
      if (!write(at)) return false;
    }
    out_.put(']');
    return true;
  }

  bool members(std::size_t place) {
    const std::size_t from = names_.size();
    for (std::size_t at = place + 1; at < tape_[place].next; at = tape_[at + 1].next) names_.push_back(at);
    const auto name = [&](std::size_t at) { return text_of(text_, tape_[at]); };
    std::sort(names_.begin() + static_cast<std::ptrdiff_t>(from), names_.end(),
              [&](std::size_t a, std::size_t b) { return name(a) < name(b); });
    out_.put('{');
    for (std::size_t i = from; i < names_.size(); ++i) {  // those of objects within come and go behind it
      if (i > from) {
        if (name(names_[i]) == name(names_[i - 1])) return false;
        out_.put(',');
      }
      quoted(tape_[names_[i]]);
      out_.put(':');
      if (!write(names_[i] + 1)) return false;
    }
    out_.put('}');
    names_.resize(from);
    return true;
  }

  void quoted(const Value& value) {
    const std::string_view raw = text_of(text_, value);
    out_.put('"');
    if (value.escaped)
      unescape(raw, [&](std::string_view part, bool single) { single ? escaped(part) : out_.put(part); });
    else
      out_.put(raw);
    out_.put('"');
  }

  void escaped(std::string_view character) {
    static constexpr char digits[] = "0123456789abcdef";
    const auto c = static_cast<unsigned char>(character[0]);
    const std::string_view from("\"\\\b\f\n\r\t"), to("\"\\bfnrt");
    if (const std::size_t known = from.find(character[0]); known != std::string_view::npos) {
      const char pair[] = {'\\', to[known]};
      out_.put(std::string_view(pair, 2));
    } else if (c < 0x20) {
      const char unit[] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15]};
      out_.put(std::string_view(unit, 6));
    } else {
      out_.put(character);
    }
  }

  std::string_view text_;
  const Tape& tape_;
  BlockHasher& out_;
  std::vector<std::size_t> names_;
};

}  // namespace sage
