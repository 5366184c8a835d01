// Runs the reader of vectors under the sanitizers, on answers that were damaged in every place:
// g++ -std=c++20 -g -fsanitize=address,undefined -I. check_vectors.cpp && ./a.out
#include <cstdio>
#include <memory>
#include <string>

#include "sage/vectors.hpp"

namespace {

sage::VectorReader reader;
sage::Vectors found;
int cases = 0;

// On memory of just that size, so that a byte too far is seen.
bool read(const std::string& text) {
  const auto exact = std::make_unique<char[]>(text.size() + 1);
  char* const begin = exact.get() + 1;  // its last byte is the last there is
  text.copy(begin, text.size());
  ++cases;
  if (!reader.read({begin, text.size()}, found)) return false;
  for (const sage::Place& place : found.places)
    if (place.end <= place.begin + 1 || place.end > text.size()) std::abort();
  return true;
}

std::string vector(const std::string& text, std::size_t at) {
  return text.substr(found.places[at].begin, found.places[at].end - found.places[at].begin);
}

}  // namespace

int main() {
  const std::string numbers =
      R"({"data":[{"index":1,"embedding":[1.50, -2e-3,123456789012]},{"object":"x","embedding":[0,0.125,-1E+9],"index":0}],)"
      R"( "usage":{"prompt_tokens":12,"total_tokens":13},"model":"m"})";
  if (!read(numbers) || found.places.size() != 2 || found.tokens != 12 || vector(numbers, 0) != "[0,0.125,-1E+9]" ||
      vector(numbers, 1) != "[1.50, -2e-3,123456789012]")
    return std::printf("wrong: numbers\n"), 1;
  const std::string packed = R"({"usage":null,"data":[{"index":0,"embedding":"AACAPw=="}]})";
  if (!read(packed) || found.places.size() != 1 || found.tokens != 0 || vector(packed, 0) != R"("AACAPw==")")
    return std::printf("wrong: base64\n"), 1;
  for (const std::string& text : {numbers, packed})
    for (std::size_t at = 0; at < text.size(); ++at) {
      if (read(text.substr(0, at))) return std::printf("wrong: cut at %zu\n", at), 1;
      for (const char byte : {'\0', '"', '[', ']', '{', '}', ',', ':', '-', '.', '0', 'e', ' ', '\x80', '\xff'}) {
        std::string other = text;
        other[at] = byte;
        read(other);
        read(other.insert(at, 1, byte));
      }
    }
  for (const char* items :
       {R"({"embedding":[1]})", R"({"index":0})", R"({"index":1,"embedding":[1]})", R"({"index":-1,"embedding":[1]})",
        R"({"index":0,"index":0,"embedding":[1]})", R"({"index":0,"embedding":[]})", R"({"index":0,"embedding":[[1]]})",
        R"({"index":0,"embedding":[1],"embedding":[1]})", R"({"index":0,"embedding":null})", R"({"index":0,"embedding":[1,"a"]})",
        R"({"index":0,"embedding":[01]})", R"({"index":0,"embedding":[1.]})", R"({"index":0,"embedding":[1e]})",
        R"({"index":0,"embedding":[-]})", R"({"index":0,"embedding":[1,]})", R"({"index":0,"embedding":"\u0041"})",
        R"({"index":0,"embedding":[1]},{"index":0,"embedding":[1]})", R"({"index":0,"embedding":[1]},{"index":1,"embedding":[1,2]})",
        R"({"index":0,"embedding":"AA"},{"index":1,"embedding":[1]})", R"({"object":1,"index":0,"embedding":[1]})", "1", "[1]"})
    if (read(std::string(R"({"data":[)") + items + "]}")) return std::printf("wrong: %s\n", items), 1;
  for (const char* rest :
       {R"("usage":1)", R"("usage":{"prompt_tokens":-1})", R"("usage":{"prompt_tokens":1.5})", R"("usage":{"total_tokens":"1"})",
        R"("usage":{"prompt_tokens":1,"prompt_tokens":1})", R"("usage":null,"usage":null)", R"("data":[])"})
    if (read(std::string(R"({"data":[{"index":0,"embedding":[1]}],)") + rest + "}"))
      return std::printf("wrong: %s\n", rest), 1;
  std::string wide = R"({"data":[{"index":0,"embedding":[1)";
  for (int i = 1; i < 65'535; ++i) wide += ",1";
  if (!read(wide + "]}]}") || read(wide + ",1]}]}")) return std::printf("wrong: its bound\n"), 1;
  std::printf("%d cases agree\n", cases);
}
