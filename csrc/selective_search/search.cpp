#include "search.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

#include "grouping.h"
#include "segmentation.h"

namespace detector::selective_search {
namespace {

// What the scales of one colour space share.
struct Prepared {
  Planes planes;
  Buffer<uint8_t> texture;
  int texture_channels = 0;
  Buffer<Edge> edges;
  Forest start;

  void release_graph() {
    edges.release();
    start = {};
  }
};

// One thread's working arrays.
struct Workspace {
  Segmenter segmenter;
  Buffer<int32_t> labels;
};

void prepare(const RgbView& image, ColorSpace space, const SearchConfig& config, Prepared& prepared) {
  convert(image, space, prepared.planes);
  const Planes& planes = prepared.planes;
  const bool textured = std::any_of(config.similarities.begin(), config.similarities.end(), uses_histograms);
  prepared.texture_channels = !textured ? 0 : config.all_texture_channels ? planes.channels : 1;
  const int64_t plane = kTextureAxes * planes.pixels();
  prepared.texture.resize(prepared.texture_channels * plane);
  {
    Buffer<double> scratch;  // gone before the edges, which are the largest array
    for (int c = 0; c < prepared.texture_channels; ++c) {
      texture_bins(planes.channel(c), planes.height, planes.width, scratch,
                   prepared.texture.data() + c * plane);
    }
  }
  sorted_edges(planes, config.sigma, config.connectivity, prepared.edges);
  const float smallest_k = *std::min_element(config.scales.begin(), config.scales.end());
  start_segmentation(prepared.edges, planes.height, planes.width, smallest_k, prepared.start);
}

// Hands out the work on one image to threads: colours to prepare, (colour, scale) pairs to segment, and
// segmentations to group by one similarity.
//
// A thread prefers a colour that is prepared already and prepares another only when nothing is left to do
// with those: so no more colours than threads are held at once, and the last colour's scales are shared.
// Groupings are the shortest jobs and are kept for the end, where they even the threads out, as far as
// kPendingSegmentations a thread; one thread alone groups each segmentation at once.
class Search {
 public:
  static constexpr size_t kPendingSegmentations = 2;

  Search(const RgbView& image, const SearchConfig& config)
      : image_(image),
        config_(config),
        colors_(config.color_spaces.size()),
        results_(config.color_spaces.size() * config.scales.size() * (config.similarities.size() + 1)),
        scale_order_(config.scales.size()),
        pending_limit_(config.num_threads > 1
                           ? kPendingSegmentations * config.num_threads * config.similarities.size()
                           : 0) {
    // Small k last: its many regions then meet a freed array of edges.
    std::iota(scale_order_.begin(), scale_order_.end(), 0);
    std::stable_sort(scale_order_.begin(), scale_order_.end(),
                     [&](int a, int b) { return config.scales[a] > config.scales[b]; });
  }

  std::vector<RankedBox> run() {
    std::vector<std::jthread> helpers;                   // joined on every way out
    const int jobs = static_cast<int>(results_.size());  // more threads than this would find nothing to do
    for (int i = 1; i < std::min(config_.num_threads, jobs); ++i) helpers.emplace_back([this] { work(); });
    work();
    helpers.clear();
    if (error_) std::rethrow_exception(error_);
    std::vector<RankedBox> all;
    for (const auto& result : results_) all.insert(all.end(), result.begin(), result.end());
    return all;
  }

 private:
  struct Color {
    std::unique_ptr<Prepared> prepared;
    bool claimed = false;
    bool ready = false;
    size_t next_scale = 0;
    size_t segmented = 0;
    size_t finished = 0;
  };

  // To segment, or where `regions` is given, to group those by the similarity of that index.
  struct Job {
    Color* color;
    size_t color_index;
    size_t scale;
    std::shared_ptr<const Regions> regions;
    size_t similarity;
  };

  void work() {
    try {
      Workspace workspace;
      Job job;
      while (take(job)) job.regions ? group_regions(job) : segment(job, workspace);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      changed_.notify_all();
    }
  }

  // Finds the next job, preparing a colour where needed; false when all are handed out.
  bool take(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!error_) {
      if (groupings_.size() > pending_limit_) return take_grouping(job);
      if (take_segmentation(job)) return true;
      const auto unclaimed =
          std::find_if(colors_.begin(), colors_.end(), [](const Color& c) { return !c.claimed; });
      if (unclaimed != colors_.end()) {
        prepare_unlocked(*unclaimed, lock);
      } else if (!groupings_.empty()) {
        return take_grouping(job);
      } else if (busy_ > 0) {
        changed_.wait(lock);
      } else {
        return false;
      }
    }
    return false;
  }

  bool take_segmentation(Job& job) {
    for (size_t i = 0; i < colors_.size(); ++i) {
      Color& color = colors_[i];
      if (!color.ready || color.next_scale == scale_order_.size()) continue;
      job = {&color, i, static_cast<size_t>(scale_order_[color.next_scale++]), nullptr, 0};
      ++busy_;
      return true;
    }
    return false;
  }

  bool take_grouping(Job& job) {
    job = std::move(groupings_.back());
    groupings_.pop_back();
    return true;
  }

  void prepare_unlocked(Color& color, std::unique_lock<std::mutex>& lock) {
    color.claimed = true;
    ++busy_;
    color.prepared = std::make_unique<Prepared>();
    lock.unlock();
    prepare(image_, config_.color_spaces[&color - colors_.data()], config_, *color.prepared);
    lock.lock();
    color.ready = true;
    --busy_;
    changed_.notify_all();
  }

  void segment(const Job& job, Workspace& workspace) {
    Prepared& prepared = *job.color->prepared;
    const Planes& planes = prepared.planes;
    const int count = workspace.segmenter.segment(prepared.edges, prepared.start, planes.height, planes.width,
                                                  config_.scales[job.scale], config_.min_sizes[job.scale],
                                                  workspace.labels);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (++job.color->segmented == scale_order_.size()) prepared.release_graph();
    }
    const auto regions = std::make_shared<Regions>();
    measure_regions(planes, prepared.texture.data(), prepared.texture_channels, config_.diagonal_neighbours,
                    workspace.labels.data(), count, *regions);
    std::vector<RankedBox>& initial = result(job, config_.similarities.size());
    for (const Box& box : regions->box) initial.push_back({box, count});

    const std::lock_guard<std::mutex> lock(mutex_);
    if (++job.color->finished == scale_order_.size()) job.color->prepared.reset();
    for (size_t i = 0; i < config_.similarities.size(); ++i) {
      groupings_.push_back({job.color, job.color_index, job.scale, regions, i});
    }
    --busy_;
    changed_.notify_all();
  }

  void group_regions(const Job& job) {
    std::vector<RankedBox>& boxes = result(job, job.similarity);
    int priority = job.regions->count;
    const Similarity similarity = config_.similarities[job.similarity];
    for (const Box& box : group(*job.regions, similarity, image_.pixels(), config_.pixels_per_size)) {
      boxes.push_back({box, --priority});
    }
  }

  // The boxes of one grouping; behind a segmentation's groupings, its initial boxes.
  std::vector<RankedBox>& result(const Job& job, size_t similarity) {
    const size_t segmentation = job.scale * colors_.size() + job.color_index;
    return results_[segmentation * (config_.similarities.size() + 1) + similarity];
  }

  const RgbView image_;
  const SearchConfig& config_;
  std::vector<Color> colors_;
  std::vector<std::vector<RankedBox>> results_;
  std::vector<int> scale_order_;
  size_t pending_limit_;
  std::vector<Job> groupings_;
  int busy_ = 0;  // colours and segmentations in the making, from which more jobs will come
  std::mutex mutex_;
  std::condition_variable changed_;
  std::exception_ptr error_;
};

}  // namespace

std::vector<RankedBox> search(const RgbView& image, const SearchConfig& config) {
  return Search(image, config).run();
}

}  // namespace detector::selective_search
