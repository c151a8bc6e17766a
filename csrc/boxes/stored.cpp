#include "boxes/stored.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

namespace detector::boxes {
namespace {

// Tables for the CRC-32 of eight bytes at a time (Kounavis and Berry, "Novel Table Lookup-Based Algorithms for
// High-Performance CRC Generation", 2008) with zlib's polynomial.
constexpr auto kTables = [] {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
    tables[0][byte] = value;
  }
  for (size_t table = 1; table < 8; ++table)
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[table - 1][byte];
      tables[table][byte] = before >> 8 ^ tables[0][before & 255];
    }
  return tables;
}();

static_assert(std::endian::native == std::endian::little, "the bytes of a word are taken from its low end");

// Continues `checksum`, which is 0 at the start, as zlib's crc32 does. `bytes` is a multiple of four.
uint32_t crc32(uint32_t checksum, const float* data, size_t bytes) {
  const auto* from = reinterpret_cast<const unsigned char*>(data);
  uint32_t state = ~checksum;
  for (; bytes >= 8; bytes -= 8, from += 8) {
    uint64_t word;
    std::memcpy(&word, from, 8);
    word ^= state;
    state = 0;
    for (size_t i = 0; i < 8; ++i) state ^= kTables[7 - i][word >> 8 * i & 255];
  }
  for (; bytes > 0; --bytes, ++from) state = state >> 8 ^ kTables[0][(state ^ *from) & 255];
  return ~state;
}

bool read_whole(int64_t file, int64_t offset, std::vector<float>& values) {
  auto* to = reinterpret_cast<char*>(values.data());
  size_t missing = values.size() * sizeof(float);
  while (missing > 0) {
    const ssize_t read = pread(static_cast<int>(file), to, missing, offset);
    if (read < 0 && errno == EINTR) continue;
    if (read <= 0) return false;
    to += read, offset += read, missing -= read;
  }
  return true;
}

}  // namespace

bool Stored::read(const Place& place) {
  count_ = place.count;
  scored_ = place.scores_file >= 0;
  boxes_.resize(4 * count_);
  scores_.resize(scored_ ? count_ : 0);
  if (!read_whole(place.boxes_file, place.boxes_offset, boxes_)) return false;
  if (scored_ && !read_whole(place.scores_file, place.scores_offset, scores_)) return false;
  if (place.checksum < 0) return true;
  const uint32_t checksum = crc32(0, boxes_.data(), boxes_.size() * sizeof(float));
  return crc32(checksum, scores_.data(), scores_.size() * sizeof(float)) == place.checksum;
}

}  // namespace detector::boxes
