// The tokens that an engine has counted, from its whole answer. Header only, no Python.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "json.hpp"

namespace sage {

struct Counted {
  std::int64_t prompt = 0, completion = 0;
};

// The `usage` of a plain answer that counts by OpenAI's names and has one; else nothing, and the caller looks
// closely. `tape` is for the work, and is kept by the caller.
inline std::optional<Counted> usage_of(std::string_view text, Tape& tape) {
  if (!scan(text, tape, Numbers::packed)) return std::nullopt;
  std::size_t usage = 0;
  for (std::size_t at = 1; at < tape[0].next; at = tape[at + 1].next)
    if (!tape[at].escaped && text_of(text, tape[at]) == "usage") {
      if (usage != 0 || tape[at + 1].kind != Kind::object) return std::nullopt;
      usage = at + 1;
    }
  if (usage == 0) return std::nullopt;
  Counted found;
  bool read = false, written = false;
  for (std::size_t at = usage + 1; at < tape[usage].next; at = tape[at + 1].next) {
    const std::string_view name = text_of(text, tape[at]);
    const bool prompt = name == "prompt_tokens", completion = name == "completion_tokens";
    if (name.find("put_tokens") != std::string_view::npos) return std::nullopt;  // by another dialect's names
    if (!prompt && !completion) continue;
    const Value& value = tape[at + 1];
    if (value.kind != Kind::integer || text[value.begin] == '-' || (prompt ? read : written)) return std::nullopt;
    std::int64_t count = 0;  // at most `Bounds::digits` of them
    for (const char digit : text_of(text, value)) count = count * 10 + (digit - '0');
    (prompt ? found.prompt : found.completion) = count;
    (prompt ? read : written) = true;
  }
  if (found.prompt == 0) return std::nullopt;  // whether it counts by other names
  return found;
}

}  // namespace sage
