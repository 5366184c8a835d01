// Runs the core under the sanitizers: g++ -std=c++20 -g -fsanitize=address,undefined check_usage.cpp && ./a.out
#include <cstdio>
#include <memory>
#include <string>

#include "sage/usage.hpp"

namespace {

sage::Tape tape;

// On memory of just that size, so that a byte too far is seen.
std::optional<sage::Counted> read(const std::string& text) {
  const auto exact = std::make_unique<char[]>(text.size());
  text.copy(exact.get(), text.size());
  return sage::usage_of({exact.get(), text.size()}, tape);
}

}  // namespace

int main() {
  int cases = 0;
  const std::string answer = R"({"id":"a","choices":[{"usage":{"prompt_tokens":9}}],"usage":)";
  const std::string usage = R"({"prompt_tokens": 12, "completion_tokens": 345, "details": {"prompt_tokens": 7}})";
  const auto found = read(answer + usage + "}");
  if (!found || found->prompt != 12 || found->completion != 345) return std::printf("wrong: the usual one\n"), 1;
  for (std::size_t cut = 0; cut < answer.size() + usage.size(); ++cut, ++cases)
    if (read((answer + usage).substr(0, cut))) return std::printf("wrong: cut at %zu\n", cut), 1;
  for (const char* other :
       {"null", "1", "[]", "{}", R"({"prompt_tokens":-1})", R"({"prompt_tokens":1.0})", R"({"prompt_tokens":"1"})",
        R"({"prompt_tokens":1,"prompt_tokens":2})", R"({"prompt_tokens":1,"input_tokens":2})",
        R"({"prompt_tokens":1234567890123456789})", R"({"completion_tokens":1})"}) {
    if (read(answer + other + "}")) return std::printf("wrong: %s\n", other), 1;
    ++cases;
  }
  if (read(answer + usage + R"(,"usage":{"prompt_tokens":1}})")) return std::printf("wrong: twice\n"), 1;
  if (read("[1]") || read("") || read("{}")) return std::printf("wrong: no answer\n"), 1;
  std::printf("%d cases agree\n", cases + 4);
}
