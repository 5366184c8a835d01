// What plain requests for chats and embeddings say: the few fields that the gateway looks at. No Python.
//
// Each reader says no where a field is missing, of another kind or out of its bounds, and where it cannot be sure:
// then the caller has to look at the body by other means, and to say what is wrong with it.
#pragma once

#include <optional>

#include "blocks.hpp"

namespace sage {

// The members of an object by name. Of one that comes twice the last one counts.
class Fields {
 public:
  Fields(std::string_view text, const Tape& tape, std::size_t place) : text_(text), tape_(tape), place_(place) {}

  // Calls `take(name, value)` for each; stops and returns false when that does.
  template <class Take>
  bool each(Take&& take) const {
    for (std::size_t at = place_ + 1; at < tape_[place_].next; at = tape_[at + 1].next)
      if (!take(text_of(text_, tape_[at]), at + 1)) return false;
    return true;
  }

  std::optional<std::size_t> find(std::string_view name) const {
    std::optional<std::size_t> found;
    each([&](std::string_view one, std::size_t value) {
      if (one == name) found = value;
      return true;
    });
    return found;
  }

 private:
  std::string_view text_;
  const Tape& tape_;
  std::size_t place_;
};

// What is needed of an engine beside the route itself.
enum Need : unsigned {
  need_n = 1,
  need_logprobs = 2,
  need_response_format = 4,
  need_tools = 8,
  need_tool_choice = 16
};

struct Chat {
  std::string model;
  bool stream = false, include_usage = false;
  std::int64_t max_tokens = 0;  // 0 = not said
  unsigned needs = 0;
};

struct Embedding {
  std::string model, encoding_format;  // empty = not said
  std::int64_t dimensions = 0;         // 0 = not said
  std::size_t texts = 0, bytes = 0;    // bytes of the texts, in UTF-8
  bool alone = false;                  // it has fields that are not looked at here
};

// Reads one body after the other; keeps its memory for the next one.
class Reader {
 public:
  static constexpr std::size_t fields = 64, messages = 2048, tools = 128;
  static constexpr std::int64_t answers = 8, logprobs = 20;

  // `blocks`: where the hashes of its text go, if they are wanted: its tools, then its messages, a line each.
  bool chat(std::string_view body, Chat& chat, std::vector<std::uint64_t>* blocks) {
    text_ = body;
    if (!scan(body, tape_) || !distinct()) return false;
    std::size_t talk = 0, tooling = 0, model = 0;
    std::int64_t limit = 0, newer_limit = 0;
    const auto take = [&](std::string_view name, std::size_t at) {
      if (name == "messages") return (talk = at, true);
      if (name == "model") return (model = at, true);
      if (name == "stream") return flag(at, chat.stream);
      if (name == "stream_options") return options(at, chat);
      if (name == "max_tokens") return whole(at, 1, INT64_MAX, limit);
      if (name == "max_completion_tokens") return whole(at, 1, INT64_MAX, newer_limit);
      if (name == "tools") return toolbox(at, tooling, chat);
      return needs(name, at, chat);
    };
    if (!Fields(text_, tape_, 0).each(take) || !named(model, chat.model) || !conversation(talk)) return false;
    chat.max_tokens = newer_limit != 0 ? newer_limit : limit;
    chat.include_usage = chat.stream && chat.include_usage;
    return blocks == nullptr || hash(tooling, talk, *blocks);
  }

  bool embedding(std::string_view body, Embedding& found) {
    text_ = body;
    if (!scan(body, tape_) || !distinct()) return false;
    std::size_t model = 0, input = 0, format = 0;
    const auto take = [&](std::string_view name, std::size_t at) {
      if (name == "model") return (model = at, true);
      if (name == "input") return (input = at, true);
      if (name == "encoding_format") return (format = at, true);
      if (name == "dimensions") return whole(at, 1, INT64_MAX, found.dimensions);
      found.alone = true;
      return true;
    };
    if (!Fields(text_, tape_, 0).each(take) || !named(model, found.model) || input == 0) return false;
    if (format != 0 && tape_[format].kind != Kind::null) {
      found.encoding_format = text_of(text_, tape_[format]);
      const bool known = found.encoding_format == "float" || found.encoding_format == "base64";
      if (tape_[format].kind != Kind::string || !known) return false;
    }
    return texts(input, found);
  }

  // The text of a plain embedding that asks for one, quotes included; nothing where it asks for more.
  std::optional<std::string_view> only_text(std::string_view body) {
    if (!scan(body, tape_)) return std::nullopt;
    const auto input = Fields(body, tape_, 0).find("input");
    if (!input) return std::nullopt;
    const bool listed = tape_[*input].kind == Kind::array;
    const std::size_t at = *input + listed;
    if (listed && (at == tape_[*input].next || tape_[at].next != tape_[*input].next)) return std::nullopt;
    if (tape_[at].kind != Kind::string) return std::nullopt;
    return body.substr(tape_[at].begin - 1, tape_[at].end - tape_[at].begin + 2);
  }

 private:
  // Whether no field of the body comes twice; few enough to compare each with each.
  bool distinct() const {
    std::string_view names[fields];
    std::size_t count = 0;
    return Fields(text_, tape_, 0).each([&](std::string_view name, std::size_t) {
      if (count == fields || std::find(names, names + count, name) != names + count) return false;
      names[count++] = name;
      return true;
    });
  }

  bool named(std::size_t at, std::string& name) const {
    if (at == 0 || tape_[at].kind != Kind::string) return false;
    name = characters(text_, tape_[at]);
    return true;
  }

  bool flag(std::size_t at, bool& value) const {
    const Kind kind = tape_[at].kind;
    value = kind == Kind::yes;
    return value || kind == Kind::no || kind == Kind::null;
  }

  // An integer within the bounds; null is as if it were not there.
  bool whole(std::size_t at, std::int64_t low, std::int64_t high, std::int64_t& value) const {
    if (tape_[at].kind == Kind::null) return true;
    if (tape_[at].kind != Kind::integer) return false;
    std::string_view digits = text_of(text_, tape_[at]);
    const bool negative = digits[0] == '-';
    if (negative) digits.remove_prefix(1);
    std::int64_t sum = 0;
    for (const char c : digits) sum = sum * 10 + (c - '0');  // at most 18 of them
    value = negative ? -sum : sum;
    return low <= value && value <= high;
  }

  bool options(std::size_t at, Chat& chat) const {
    if (tape_[at].kind == Kind::null) return true;
    if (tape_[at].kind != Kind::object) return false;
    const auto usage = Fields(text_, tape_, at).find("include_usage");
    return !usage || flag(*usage, chat.include_usage);
  }

  bool toolbox(std::size_t at, std::size_t& place, Chat& chat) const {
    if (tape_[at].kind == Kind::null) return true;
    const std::size_t count = objects(at);
    if (tape_[at].kind != Kind::array || count > tools) return false;
    if (count > 0) {
      place = at;
      chat.needs |= need_tools;
    }
    return true;
  }

  bool needs(std::string_view name, std::size_t at, Chat& chat) const {
    std::int64_t number = 0;
    bool yes = false;
    if (name == "n") {
      if (!whole(at, 1, answers, number)) return false;
      chat.needs |= number > 1 ? need_n : 0u;
    } else if (name == "logprobs") {
      if (!flag(at, yes)) return false;
      chat.needs |= yes ? need_logprobs : 0u;
    } else if (name == "top_logprobs") {
      if (!whole(at, 0, logprobs, number)) return false;
      chat.needs |= number > 0 ? need_logprobs : 0u;
    } else if (name == "response_format") {
      if (tape_[at].kind == Kind::null) return true;
      if (tape_[at].kind != Kind::object) return false;
      const auto type = Fields(text_, tape_, at).find("type");
      chat.needs |= type && says(*type, "text") ? 0u : need_response_format;
    } else if (name == "tool_choice") {
      const Kind kind = tape_[at].kind;
      if (kind != Kind::null && kind != Kind::string && kind != Kind::object) return false;
      chat.needs |= kind == Kind::null || says(at, "auto") || says(at, "none") ? 0u : need_tool_choice;
    }
    return true;
  }

  bool says(std::size_t at, std::string_view word) const {
    return tape_[at].kind == Kind::string && characters(text_, tape_[at]) == word;
  }

  // How many objects an array has; more than any bound where something else is among them.
  std::size_t objects(std::size_t place) const {
    std::size_t count = 0;
    for (std::size_t at = place + 1; at < tape_[place].next; at = tape_[at].next, ++count)
      if (tape_[at].kind != Kind::object) return SIZE_MAX;
    return count;
  }

  bool conversation(std::size_t place) const {
    if (place == 0 || tape_[place].kind != Kind::array) return false;
    if (const std::size_t count = objects(place); count == 0 || count > messages) return false;
    for (std::size_t at = place + 1; at < tape_[place].next; at = tape_[at].next) {
      const auto role = Fields(text_, tape_, at).find("role");
      if (!role || tape_[*role].kind != Kind::string) return false;
    }
    return true;
  }

  bool hash(std::size_t tooling, std::size_t talk, std::vector<std::uint64_t>& blocks) const {
    BlockHasher hasher(blocks);
    Canonical canonical(text_, tape_, hasher);
    if (tooling != 0) {
      if (!canonical.write(tooling)) return false;
      hasher.put('\n');
    }
    for (std::size_t at = talk + 1; at < tape_[talk].next; at = tape_[at].next) {
      if (at > talk + 1) hasher.put('\n');
      if (!canonical.write(at)) return false;
    }
    return true;
  }

  bool texts(std::size_t input, Embedding& found) const {
    const auto add = [&](const Value& value) {
      if (value.kind != Kind::string || value.begin == value.end) return false;
      if (value.escaped)
        unescape(text_of(text_, value), [&](std::string_view part, bool) { found.bytes += part.size(); });
      else
        found.bytes += value.end - value.begin;
      ++found.texts;
      return true;
    };
    if (tape_[input].kind != Kind::array) return add(tape_[input]);
    for (std::size_t at = input + 1; at < tape_[input].next; at = tape_[at].next)
      if (!add(tape_[at])) return false;
    return found.texts > 0;
  }

  std::string_view text_;
  Tape tape_;
};

}  // namespace sage
