// Runs the core under the sanitizers: g++ -std=c++20 -g -fsanitize=address,undefined check_heads.cpp && ./a.out
#include <cstdio>
#include <memory>
#include <string>

#include "sage/heads.hpp"

namespace {

const std::string kBefore = "POST / HTTP/1.1\r\nContent-Length: ", kAfter = "\r\nhost: x\r\n\r\n";

// On memory of just that size, so that a byte too far is seen.
std::optional<std::string> read(const std::string& data, std::size_t most) {
  const auto exact = std::make_unique<char[]>(data.size());
  data.copy(exact.get(), data.size());
  const auto body = sage::body_after({exact.get(), data.size()}, kBefore, kAfter, most);
  return body ? std::optional<std::string>(*body) : std::nullopt;
}

bool holds(std::size_t size) {
  const std::string body(size, '7');
  const std::string data = kBefore + std::to_string(size) + kAfter + body;
  if (read(data, size) != body || (size > 0 && read(data, size - 1)) || read(data + "7", size + 1)) return false;
  for (std::size_t cut = 0; cut < data.size(); ++cut)
    if (read(data.substr(0, cut), size)) return false;
  return true;
}

}  // namespace

int main() {
  int cases = 0;
  for (const std::size_t size : {0, 1, 9, 10, 11, 99, 100, 1000}) {
    if (!holds(size)) {
      std::printf("wrong: a body of %zu bytes\n", size);
      return 1;
    }
    ++cases;
  }
  for (const char* digits : {"", "-1", "+1", "1 ", " 1", "0x1", "1111111111111111", "99999999999999999999"}) {
    if (read(kBefore + digits + kAfter + "7", 100)) {
      std::printf("wrong: a length of '%s'\n", digits);
      return 1;
    }
    ++cases;
  }
  std::printf("%d cases agree\n", cases);
}
