// The vectors of an engine's whole answer, each where it lies there. Header only, no Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "json.hpp"

namespace sage {

struct Place {  // bytes of the text; none while `end` is 0
  std::uint32_t begin = 0, end = 0;
};

struct Vectors {
  std::vector<Place> places;  // by the index of the text that each is for, brackets or quotes included
  std::int64_t tokens = 0;    // of the prompt, as the engine has counted them
};

// Reads one answer after the other; keeps its memory for the next one.
class VectorReader {
 public:
  // Whether it is a plain answer with one vector for each of as many texts as there are vectors, all of one kind and
  // length.
  bool read(std::string_view text, Vectors& found) {
    text_ = text;
    found.places.clear();
    found.tokens = 0;
    if (!scan(text, tape_, Numbers::packed)) return false;
    std::size_t data = 0, usage = 0;
    const bool once = each(0, [&](std::string_view name, std::size_t at) {
      std::size_t* const place = name == "data" ? &data : name == "usage" ? &usage : nullptr;
      return place == nullptr || set(*place, at);
    });
    return once && data != 0 && counted(usage, found.tokens) && items(data, found.places);
  }

 private:
  // Calls `take(name, value)` for each member of an object; false as soon as that says so.
  template <class Take>
  bool each(std::size_t place, Take&& take) const {
    for (std::size_t at = place + 1; at < tape_[place].next; at = tape_[at + 1].next)
      if (!take(text_of(text_, tape_[at]), at + 1)) return false;
    return true;
  }

  static bool set(std::size_t& place, std::size_t at) {
    const bool first = place == 0;
    place = at;
    return first;
  }

  bool natural(std::size_t at, std::int64_t& value) const {
    if (tape_[at].kind != Kind::integer || text_[tape_[at].begin] == '-') return false;
    value = 0;  // at most `Bounds::digits` of them
    for (const char digit : text_of(text_, tape_[at])) value = value * 10 + (digit - '0');
    return true;
  }

  bool counted(std::size_t usage, std::int64_t& tokens) const {
    if (usage == 0 || tape_[usage].kind == Kind::null) return true;
    bool known = false;
    std::int64_t all = 0;
    return tape_[usage].kind == Kind::object && each(usage, [&](std::string_view name, std::size_t at) {
      if (name == "total_tokens") return natural(at, all);
      if (name != "prompt_tokens") return true;
      if (known) return false;
      known = true;
      return natural(at, tokens);
    });
  }

  bool items(std::size_t data, std::vector<Place>& places) const {
    if (tape_[data].kind != Kind::array || tape_[data].numbers != 0) return false;
    std::size_t count = 0;
    for (std::size_t at = data + 1; at < tape_[data].next; at = tape_[at].next) ++count;
    places.resize(count);
    const Value* first = nullptr;
    for (std::size_t at = data + 1; at < tape_[data].next; at = tape_[at].next) {
      std::size_t vector = 0;
      std::int64_t index = 0;
      if (tape_[at].kind != Kind::object || !item(at, index, vector)) return false;
      if (static_cast<std::uint64_t>(index) >= places.size() || places[static_cast<std::size_t>(index)].end != 0)
        return false;
      const Value& value = tape_[vector];
      if (first == nullptr) first = &value;
      if (!alike(value, *first)) return false;
      const std::uint32_t quote = value.kind == Kind::string;
      places[static_cast<std::size_t>(index)] = {value.begin - quote, value.end + quote};
    }
    return true;  // each index below their number came once
  }

  bool item(std::size_t place, std::int64_t& index, std::size_t& vector) const {
    std::size_t number = 0;
    const bool known = each(place, [&](std::string_view name, std::size_t at) {
      if (name == "index") return set(number, at) && natural(at, index);
      if (name == "embedding") return set(vector, at);
      return name != "object" || tape_[at].kind == Kind::string;
    });
    return known && number != 0 && vector != 0;
  }

  // Whether it is a vector as another one is: as many numbers, or base64 of one length.
  bool alike(const Value& one, const Value& other) const {
    if (one.kind != other.kind) return false;
    if (one.kind == Kind::array) return one.numbers != 0 && one.numbers == other.numbers;
    if (one.kind != Kind::string || one.escaped || one.end - one.begin != other.end - other.begin) return false;
    const std::string_view text = text_of(text_, one);
    return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  }

  std::string_view text_;
  Tape tape_;
};

}  // namespace sage
