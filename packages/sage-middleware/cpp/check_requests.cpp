// Runs the readers of requests under the sanitizers, on bodies that were damaged in every place:
// g++ -std=c++20 -g -fsanitize=address,undefined -I. check_requests.cpp && ./a.out
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "sage/requests.hpp"

namespace {

// Bodies that hold one of everything that is looked at.
const char* const bodies[] = {
    R"({"model":"m","messages":[{"role":"user","content":"hi"}]})",
    R"( { "messages" : [ { "role" : "system" , "content" : "" } , {"content":[{"type":"text","text":"a\nb\u00e9\ud83d\ude00"}],"role":"user"}],)"
    R"("model":"a\/b","stream":true,"stream_options":{"include_usage":true},"max_tokens":12,"n":2,"logprobs":true,)"
    R"("top_logprobs":3,"response_format":{"type":"json_object"},"tools":[{"type":"function","function":{"z":[1,-2,null,true,false],"a":{}}}],)"
    R"("tool_choice":"auto","temperature":0.25,"seed":-7,"stop":[]} )",
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80 \\\" \\\\ \\u0001\"}]}",
    R"({"model":"m","input":"one text","dimensions":3,"encoding_format":"base64"})",
    R"({"model":"m","input":["a","\u00e9\"","c\t"],"user":"x"})",
};

struct Counts {
  int plain = 0, others = 0;
};

// From memory of just its size, so that a step beyond it is seen.
void read(std::string_view text, Counts& counts) {
  const auto exact = std::make_unique<char[]>(text.size() + (text.empty() ? 1 : 0));
  std::copy(text.begin(), text.end(), exact.get());
  const std::string_view body(exact.get(), text.size());
  static sage::Reader reader;
  std::vector<std::uint64_t> blocks;
  sage::Chat hashed, chat;
  sage::Embedding embedding;
  const bool with = reader.chat(body, hashed, &blocks), without = reader.chat(body, chat, nullptr);
  if (with && (!without || hashed.model != chat.model || hashed.needs != chat.needs)) std::abort();
  const bool embeds = !with && reader.embedding(body, embedding);
  if (embeds && reader.only_text(body).has_value() != (embedding.texts == 1)) std::abort();
  (with || embeds ? counts.plain : counts.others)++;
}

void damage(const std::string& body, Counts& counts) {
  static constexpr unsigned char bytes[] = {0,   '"', '\\', '{', '}', '[', ']', ',',  ':',  'u',  '0',  '9',  '-',
                                            '.', 'e', 'd',  ' ', '\n', 0x1f, 0x7f, 0x80, 0xc3, 0xe2, 0xed, 0xf0, 0xff};
  for (std::size_t at = 0; at < body.size(); ++at) {
    read(std::string_view(body).substr(0, at), counts);
    read(std::string_view(body).substr(at), counts);
    read(body.substr(0, at) + body.substr(at + 1), counts);
    for (const unsigned char byte : bytes) {
      std::string other = body;
      other[at] = static_cast<char>(byte);
      read(other, counts);
      other.insert(at, 1, static_cast<char>(byte));
      read(other, counts);
    }
  }
}

bool deep(std::size_t depth) {  // levels, the object and its messages among them
  std::string body = R"({"model":"m","messages":[{"role":"user"}],"x":)";
  body += std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
  sage::Chat chat;
  return sage::Reader().chat(body, chat, nullptr);
}

bool long_text(std::size_t size) {  // in one piece and in many, the blocks are the same
  std::string text;
  for (std::size_t i = 0; i < size; ++i) text += static_cast<char>(i * 7 % 251);
  std::vector<std::uint64_t> whole, pieces;
  sage::BlockHasher(whole).put(text);
  sage::BlockHasher hasher(pieces);
  for (std::size_t at = 0, part = 1; at < size; at += part, part = part * 5 % 611)
    hasher.put(std::string_view(text).substr(at, part));
  return whole == pieces && whole.size() == size / 256;
}

}  // namespace

int main() {
  Counts counts, intact;
  for (const std::string body : bodies) {
    read(body, intact);
    damage(body, counts);
  }
  sage::Reader reader;
  bool right = reader.only_text(R"({"input" : "a\"b" })") == R"("a\"b")" && reader.only_text(R"({"input":[ "c" ]})") == "\"c\"";
  right = right && !reader.only_text(R"({"input":[]})") && !reader.only_text(R"({"input":["a","b"]})");
  right = right && intact.others == 0 && counts.plain > 100 && counts.others > 1000;
  right = right && sage::crc32("123456789", 9) == 0xcbf43926u && deep(64) && !deep(65);
  for (const std::size_t size : {0, 1, 255, 256, 257, 511, 512, 70'000}) right = right && long_text(size);
  std::printf("%d plain, %d not: %s\n", counts.plain, counts.others, right ? "cases agree" : "wrong");
  return right ? 0 : 1;
}
