// Selective search without torch, for a build with AddressSanitizer and UndefinedBehaviorSanitizer:
//
//     c++ -std=c++20 -O1 -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all
//         csrc/selective_search/sanitizer/run.cpp -o run
//     run HEIGHT WIDTH THREADS < IMAGE.rgb
//
// Reads raw RGB pixels, first searches many small images cut and stretched from them, then the image itself
// with every colour space and similarity, and prints the latter's boxes: priority x1 y1 x2 y2, half-open.
// This build has no processor-specific code, so that its boxes also check that of the others.

#include <cstdio>
#include <cstdlib>
#include <vector>

// The sources as one unit compile in half the time.
#include "../blur.cpp"
#include "../color.cpp"
#include "../edges.cpp"
#include "../grouping.cpp"
#include "../ranking.cpp"
#include "../recursive_gaussian.cpp"
#include "../regions.cpp"
#include "../resize.cpp"
#include "../search.cpp"
#include "../segmentation.cpp"
#include "../similarity.cpp"
#include "../texture.cpp"

namespace {

using namespace detector::selective_search;

SearchConfig everything(int threads) {
  SearchConfig config;
  for (int64_t i = 0; i < count_of(ColorSpace{}); ++i)
    config.color_spaces.push_back(static_cast<ColorSpace>(i));
  for (int64_t i = 0; i < count_of(Similarity{}); ++i)
    config.similarities.push_back(static_cast<Similarity>(i));
  config.scales = {20, 150};
  config.min_sizes = {20, 5};
  config.sigma = 0.8f;
  config.connectivity = Connectivity::eight;
  config.diagonal_neighbours = true;
  config.all_texture_channels = true;
  config.pixels_per_size = 3;
  config.num_threads = threads;
  return config;
}

void search_small_images(const RgbView& image, int threads) {
  for (int height : {1, 2, 3, 9, 16, 33, 70}) {
    for (int width : {1, 2, 5, 8, 31, 64}) {
      const Buffer<uint8_t> pixels = resize(image, height, width);
      const std::vector<RankedBox> boxes = search({pixels.data(), height, width}, everything(threads));
      rank(boxes, {static_cast<uint64_t>(height), width / 4, width % 2 ? -1 : 7});
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return std::fputs("usage: run HEIGHT WIDTH THREADS < IMAGE.rgb\n", stderr), 2;
  const int height = std::atoi(argv[1]), width = std::atoi(argv[2]), threads = std::atoi(argv[3]);
  std::vector<uint8_t> pixels(3 * static_cast<size_t>(height) * width);
  if (std::fread(pixels.data(), 1, pixels.size(), stdin) != pixels.size()) return 2;
  const RgbView image{pixels.data(), height, width};
  search_small_images(image, threads);
  for (const auto& [box, priority] : search(image, everything(threads))) {
    std::printf("%d %d %d %d %d\n", priority, box.x1, box.y1, box.x2 + 1, box.y2 + 1);
  }
}
