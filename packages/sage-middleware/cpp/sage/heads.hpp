// A message whose head is known but for the digits of its Content-Length. The same as `python_body` in
// engines/heads.py, which is its definition.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace sage {

inline constexpr std::size_t kLongestLength = 15;  // digits

// The body of `data` if that is `before`, a number, `after` and as many bytes as the number says, at most `most`.
inline std::optional<std::string_view> body_after(std::string_view data, std::string_view before,
                                                  std::string_view after, std::size_t most) {
  if (!data.starts_with(before)) return std::nullopt;
  std::string_view rest = data.substr(before.size());
  std::size_t digits = 0, length = 0;
  while (digits < rest.size() && rest[digits] >= '0' && rest[digits] <= '9') {
    if (digits == kLongestLength) return std::nullopt;
    length = length * 10 + static_cast<std::size_t>(rest[digits++] - '0');
  }
  rest = rest.substr(digits);
  if (digits == 0 || !rest.starts_with(after)) return std::nullopt;
  rest = rest.substr(after.size());
  if (rest.size() != length || length > most) return std::nullopt;
  return rest;
}

}  // namespace sage
