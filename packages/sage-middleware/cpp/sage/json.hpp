// One strict pass over a JSON object from outside, which notes where each value lies. Header only, no Python.
//
// What it takes is plain: bounded in depth, keys, containers, strings and values, UTF-8 without lone surrogates,
// names without escapes, no number with an exponent or of more digits than a double holds for sure. Whatever else
// may be valid JSON or not: `scan` says no, and the caller looks at it by other means.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace sage {

enum class Kind : std::uint8_t { null, no, yes, integer, real, string, array, object };

struct Value {  // in the order of the text; those of a container follow it, each member's name before its value
  std::uint32_t begin, end;  // bytes of the text; of a string, what is between its quotes
  std::uint32_t next;        // the first value behind this one and all that is in it
  Kind kind;
  bool escaped;           // a string with a backslash
  std::uint16_t numbers;  // of an array that is packed: how many it has
};

using Tape = std::vector<Value>;

// Not more than the reader in Python allows, so that what is taken here would be taken there.
struct Bounds {
  static constexpr std::size_t depth = 64, names = 10'000, containers = 32'768, strings = 65'535, values = 131'072;
  static constexpr std::size_t digits = 18, number = 32;
};

// Whether each number of an array is a value of its own, or an array of nothing but numbers, with exponents or
// without, is one value, as it stands.
enum class Numbers : bool { each, packed };

class Scanner {
 public:
  Scanner(std::string_view text, Tape& tape, Numbers numbers) : text_(text), tape_(tape), numbers_(numbers) {}

  // Whether the text is one plain object, now described by the tape, whose first value it is.
  bool object() {
    tape_.clear();
    if (text_.size() >= UINT32_MAX) return false;
    blank();
    if (at_ == text_.size() || text_[at_] != '{' || !members(1)) return false;
    blank();
    return at_ == text_.size();
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }  // no NUL is valid where this is asked

  void blank() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
      ++at_;
    }
  }

  // A new value that begins here; its place on the tape, or `none` where there are too many.
  std::size_t open(Kind kind) {
    if (tape_.size() >= Bounds::values) return none;
    tape_.push_back({static_cast<std::uint32_t>(at_), 0, 0, kind, false, 0});
    return tape_.size() - 1;
  }

  bool close(std::size_t place, std::size_t end) {
    tape_[place].end = static_cast<std::uint32_t>(end);
    tape_[place].next = static_cast<std::uint32_t>(tape_.size());
    return true;
  }

  bool value(std::size_t depth) {
    switch (peek()) {
      case '{':
        return members(depth + 1);
      case '[':
        return elements(depth + 1);
      case '"':
        return string();
      case 't':
        return word("true", Kind::yes);
      case 'f':
        return word("false", Kind::no);
      case 'n':
        return word("null", Kind::null);
      default:
        return number();
    }
  }

  bool members(std::size_t depth) {
    const std::size_t place = open(Kind::object);
    if (place == none || depth > Bounds::depth || ++containers_ > Bounds::containers) return false;
    ++at_;
    blank();
    if (peek() != '}') {
      while (true) {
        const std::size_t name = tape_.size();
        if (++names_ > Bounds::names || peek() != '"' || !string() || tape_[name].escaped) return false;
        blank();
        if (peek() != ':') return false;
        ++at_;
        blank();
        if (!value(depth)) return false;
        blank();
        if (peek() != ',') break;
        ++at_;
        blank();
      }
      if (peek() != '}') return false;
    }
    return close(place, ++at_);
  }

  bool elements(std::size_t depth) {
    const std::size_t place = open(Kind::array);
    if (place == none || depth > Bounds::depth || ++containers_ > Bounds::containers) return false;
    ++at_;
    blank();
    if (numbers_ == Numbers::packed && (peek() == '-' || digit(peek()))) return packed(place);
    if (peek() != ']') {
      while (true) {
        if (!value(depth)) return false;
        blank();
        if (peek() != ',') break;
        ++at_;
        blank();
      }
      if (peek() != ']') return false;
    }
    return close(place, ++at_);
  }

  bool word(std::string_view literal, Kind kind) {
    if (text_.substr(at_, literal.size()) != literal) return false;
    const std::size_t place = open(kind);
    if (place == none) return false;
    at_ += literal.size();
    return close(place, at_);
  }

  bool packed(std::size_t place) {
    std::size_t count = 0;
    while (true) {
      if (++count > UINT16_MAX || !any_number()) return false;
      blank();
      if (peek() != ',') break;
      ++at_;
      blank();
    }
    if (peek() != ']') return false;
    tape_[place].numbers = static_cast<std::uint16_t>(count);
    return close(place, ++at_);
  }

  bool any_number() {
    at_ += peek() == '-';
    if (peek() == '0')
      ++at_;
    else if (run_of_digits() == 0)
      return false;
    if (peek() == '.') {
      ++at_;
      if (run_of_digits() == 0) return false;
    }
    if (peek() != 'e' && peek() != 'E') return true;
    ++at_;
    at_ += peek() == '-' || peek() == '+';
    return run_of_digits() != 0;
  }

  static bool digit(char c) { return c >= '0' && c <= '9'; }

  std::size_t run_of_digits() {
    const std::size_t from = at_;
    if constexpr (std::endian::native == std::endian::little) {
      while (text_.size() - at_ >= 8) {
        std::uint64_t bytes;
        std::memcpy(&bytes, text_.data() + at_, sizeof bytes);
        bytes ^= 0x3030303030303030;  // digits are 0 to 9 then; the top bit tells of each other one
        const std::uint64_t others = (((bytes & 0x7f7f7f7f7f7f7f7f) + 0x7676767676767676) | bytes) & 0x8080808080808080;
        if (others != 0) return (at_ += static_cast<std::size_t>(std::countr_zero(others)) / 8) - from;
        at_ += 8;
      }
    }
    while (digit(peek())) ++at_;
    return at_ - from;
  }

  bool number() {
    const std::size_t place = open(Kind::integer), from = at_;
    if (place == none) return false;
    const bool negative = peek() == '-';
    at_ += negative;
    const bool zero = peek() == '0';
    const std::size_t whole = run_of_digits();
    if (whole == 0 || (zero && whole > 1)) return false;
    if (peek() == '.') {
      ++at_;
      if (run_of_digits() == 0 || at_ - from > Bounds::number) return false;
      tape_[place].kind = Kind::real;
    } else if (whole > Bounds::digits || (negative && zero)) {  // -0 is written as 0 by whoever writes it again
      return false;
    }
    return peek() != 'e' && peek() != 'E' && close(place, at_);
  }

  bool string() {
    ++at_;
    const std::size_t place = open(Kind::string);
    if (place == none || ++strings_ > Bounds::strings) return false;
    while (true) {
      skip_plain();
      if (at_ == text_.size()) return false;
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') break;
      if (c == '\\') {
        tape_[place].escaped = true;
        if (!escape()) return false;
      } else if (c < 0x20 || !sequence(c)) {
        return false;
      }
    }
    close(place, at_);
    ++at_;
    return true;
  }

  // On to the first byte that is not printable ASCII as it stands in a string.
  void skip_plain() {
#if defined(__SSE2__)
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), space = _mm_set1_epi8(0x20);
    while (text_.size() - at_ >= 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text_.data() + at_));
      const __m128i marks = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, slash));
      // As signed bytes, control characters and those from 0x80 on are both below the space.
      const int found = _mm_movemask_epi8(_mm_or_si128(marks, _mm_cmplt_epi8(bytes, space)));
      if (found != 0) {
        at_ += static_cast<std::size_t>(__builtin_ctz(static_cast<unsigned>(found)));
        return;
      }
      at_ += 16;
    }
#endif
    while (at_ < text_.size()) {
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"' || c == '\\' || c < 0x20 || c >= 0x80) return;
      ++at_;
    }
  }

  bool escape() {
    ++at_;
    const char c = peek();
    ++at_;
    if (c != 'u') return c != '\0' && std::string_view("\"\\/bfnrt").find(c) != std::string_view::npos;
    const int unit = hex(at_);
    at_ += 4;
    if (unit < 0xd800 || unit > 0xdfff) return unit >= 0;
    if (unit > 0xdbff || peek() != '\\' || text_.substr(at_ + 1, 1) != "u") return false;
    const int low = hex(at_ + 2);
    at_ += 6;
    return low >= 0xdc00 && low <= 0xdfff;
  }

  // The four hexadecimal digits there; below 0 if they are none.
  int hex(std::size_t from) const {
    const std::string_view digits = text_.substr(from < text_.size() ? from : text_.size(), 4);
    int unit = digits.size() == 4 ? 0 : -1;
    for (const char c : digits) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return -1;
      unit = unit < 0 ? -1 : unit * 16 + digit;
    }
    return unit;
  }

  // One character of two to four bytes, in its shortest form, no surrogate, none beyond U+10FFFF.
  bool sequence(unsigned char first) {
    const std::size_t length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0 || text_.size() - at_ < length) return false;
    const auto second = static_cast<unsigned char>(text_[at_ + 1]);
    const unsigned low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    const unsigned high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    if (second < low || second > high) return false;
    for (std::size_t i = 2; i < length; ++i)
      if ((static_cast<unsigned char>(text_[at_ + i]) & 0xc0) != 0x80) return false;
    at_ += length;
    return true;
  }

  static constexpr std::size_t none = SIZE_MAX;
  std::string_view text_;
  Tape& tape_;
  Numbers numbers_;
  std::size_t at_ = 0, names_ = 0, containers_ = 0, strings_ = 0;
};

// Whether `text` is one plain JSON object; if so, `tape` says where everything lies.
inline bool scan(std::string_view text, Tape& tape, Numbers numbers = Numbers::each) {
  return Scanner(text, tape, numbers).object();
}

inline std::string_view text_of(std::string_view text, const Value& value) {
  return text.substr(value.begin, value.end - value.begin);
}

// The unit that `\u` names at `from`; of a scanned string, so that its digits are there.
inline unsigned unit_at(std::string_view raw, std::size_t from) {
  unsigned unit = 0;
  for (const char c : raw.substr(from, 4))
    unit = unit * 16 + static_cast<unsigned>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
  return unit;
}

// Pass the characters of an escaped, scanned string on: runs of bytes as they are, and each escaped character in
// UTF-8 by itself. `put` takes a string_view, and whether it was escaped.
template <class Put>
void unescape(std::string_view raw, Put&& put) {
  std::size_t from = 0;
  while (true) {
    const std::size_t at = raw.find('\\', from);
    if (at != from) put(raw.substr(from, at - from), false);
    if (at == std::string_view::npos) return;
    const char c = raw[at + 1];
    from = at + 2;
    if (c != 'u') {
      const char meant = c == 'b' ? '\b' : c == 'f' ? '\f' : c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : c;
      put(std::string_view(&meant, 1), true);
      continue;
    }
    unsigned code = unit_at(raw, from);
    from += 4;
    if (code >= 0xd800 && code <= 0xdfff) {  // the high half of a pair: the low one follows
      code = 0x10000 + ((code - 0xd800) << 10) + (unit_at(raw, from + 2) - 0xdc00);
      from += 6;
    }
    char bytes[4];
    std::size_t size = 0;
    const auto add = [&](unsigned byte) { bytes[size++] = static_cast<char>(byte); };
    if (code < 0x80) {
      add(code);
    } else if (code < 0x800) {
      add(0xc0 | code >> 6), add(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      add(0xe0 | code >> 12), add(0x80 | (code >> 6 & 0x3f)), add(0x80 | (code & 0x3f));
    } else {
      add(0xf0 | code >> 18), add(0x80 | (code >> 12 & 0x3f));
      add(0x80 | (code >> 6 & 0x3f)), add(0x80 | (code & 0x3f));
    }
    put(std::string_view(bytes, size), true);
  }
}

// The characters of a string in UTF-8.
inline std::string characters(std::string_view text, const Value& value) {
  const std::string_view raw = text_of(text, value);
  if (!value.escaped) return std::string(raw);
  std::string out;
  unescape(raw, [&](std::string_view part, bool) { out += part; });
  return out;
}

}  // namespace sage
