#include "color.h"

#include <algorithm>
#include <array>

#include "portable_math.h"
#include "simd.h"

namespace detector::selective_search {
namespace {

// Rounds a value in [0, 255] half up, which is half away from zero there.
inline uint8_t to_byte(double value) {
  return static_cast<uint8_t>(static_cast<int>(std::min(std::max(value, 0.0), 255.0) + 0.5));
}

// floor((2 * 255 * numerator + denominator) / (2 * denominator)) = round(255 * ratio), exact: both operands
// and the quotient are integers below 2^24, and such a float quotient never rounds up to the next integer.
inline int scaled_ratio(int range, int numerator, int denominator) {
  return static_cast<int>(static_cast<float>(2 * range * numerator + denominator) /
                          static_cast<float>(2 * denominator));
}

// Hue in [0, 1) times `range`, rounded; grey has hue 0. In sixths of a turn the hue is an offset of 0, 2 or
// 4 for the largest channel plus a signed ratio to the spread.
inline int hue(int red, int green, int blue, int range) {
  const int largest = std::max(red, std::max(green, blue));
  const int spread = largest - std::min(red, std::min(green, blue));
  int sixths = largest == red     ? green - blue
               : largest == green ? blue - red + 2 * spread
                                  : red - green + 4 * spread;
  sixths += sixths < 0 ? 6 * spread : 0;
  return scaled_ratio(range, sixths, 6 * std::max(spread, 1));
}

// MATLAB's rgb2gray: the first row of the inverse YIQ matrix.
inline uint8_t grey(int red, int green, int blue) {
  return to_byte(0.298936021293775 * red + 0.587043074451121 * green + 0.114020904255103 * blue);
}

SELECTIVE_SEARCH_CLONES
void convert_hsv(const uint8_t* rgb, int64_t pixels, int hue_range, uint8_t* h, uint8_t* s, uint8_t* v) {
  for (int64_t i = 0; i < pixels; ++i) {
    const int red = rgb[3 * i], green = rgb[3 * i + 1], blue = rgb[3 * i + 2];
    const int largest = std::max(red, std::max(green, blue));
    const int spread = largest - std::min(red, std::min(green, blue));
    const int value = hue(red, green, blue, hue_range);
    h[i] = static_cast<uint8_t>(value == 180 && hue_range == 180 ? 0 : value);  // 180 half degrees are 0
    s[i] = static_cast<uint8_t>(scaled_ratio(255, spread, std::max(largest, 1)));
    v[i] = static_cast<uint8_t>(largest);
  }
}

SELECTIVE_SEARCH_CLONES
void convert_hue(const uint8_t* rgb, int64_t pixels, int hue_range, uint8_t* h) {
  for (int64_t i = 0; i < pixels; ++i) {
    const int value = hue(rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], hue_range);
    h[i] = static_cast<uint8_t>(value == 180 && hue_range == 180 ? 0 : value);
  }
}

SELECTIVE_SEARCH_CLONES
void convert_grey(const uint8_t* rgb, int64_t pixels, uint8_t* out) {
  for (int64_t i = 0; i < pixels; ++i) out[i] = grey(rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]);
}

// Rows of sRGB to XYZ divided by the white point: each row sums to 1, so that white is (1, 1, 1).
struct LabSpace {
  double matrix[9];
};

constexpr LabSpace kLabD50 = {{0.4360747 / 0.9642200, 0.3850649 / 0.9642200, 0.1430804 / 0.9642200,  //
                               0.2225045, 0.7168786, 0.0606169,                                      //
                               0.0139322 / 0.8252100, 0.0971045 / 0.8252100, 0.7141733 / 0.8252100}};
constexpr LabSpace kLabD65 = {{0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456,  //
                               0.212671, 0.715160, 0.072169,                                   //
                               0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754}};

// The sRGB transfer curve (IEC 61966-2-1) for each byte.
std::array<double, 256> linear_table() {
  std::array<double, 256> table;
  for (int i = 0; i < 256; ++i) {
    const double value = i / 255.0;
    table[i] = value <= 0.04045 ? value / 12.92 : portable_pow_2_4((value + 0.055) / 1.055);
  }
  return table;
}

// CIE's f: the cube root, with a straight line below (6/29)^3.
inline double lab_curve(double t) {
  constexpr double edge = 216.0 / 24389.0;
  const double root = portable_cbrt(std::max(t, edge));
  return t > edge ? root : (24389.0 / 27.0 * t + 16) / 116;
}

SELECTIVE_SEARCH_CLONES
void convert_lab(const uint8_t* rgb, int64_t pixels, const double* linear, const LabSpace& space, uint8_t* l,
                 uint8_t* a, uint8_t* b) {
  constexpr int kBlock = 256;
  double red[kBlock], green[kBlock], blue[kBlock];
  const double* m = space.matrix;
  for (int64_t start = 0; start < pixels; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, pixels - start));
    for (int i = 0; i < count; ++i) {
      const uint8_t* pixel = rgb + 3 * (start + i);
      red[i] = linear[pixel[0]], green[i] = linear[pixel[1]], blue[i] = linear[pixel[2]];
    }
    for (int i = 0; i < count; ++i) {
      const double x = lab_curve(m[0] * red[i] + m[1] * green[i] + m[2] * blue[i]);
      const double y = lab_curve(m[3] * red[i] + m[4] * green[i] + m[5] * blue[i]);
      const double z = lab_curve(m[6] * red[i] + m[7] * green[i] + m[8] * blue[i]);
      l[start + i] = to_byte((116 * y - 16) * 255 / 100);
      a[start + i] = to_byte(500 * (x - y) + 128);
      b[start + i] = to_byte(200 * (y - z) + 128);
    }
  }
}

// One colour's share of the pixel's brightness; black is a third of each.
inline double share(const uint8_t* pixel, int channel) {
  const int sum = pixel[0] + pixel[1] + pixel[2];
  return sum == 0 ? 1.0 / 3.0 : static_cast<double>(pixel[channel]) / sum;
}

SELECTIVE_SEARCH_CLONES
void convert_share(const uint8_t* rgb, int64_t pixels, int channel, uint8_t* out) {
  double low = 1, high = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const double value = share(rgb + 3 * i, channel);
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const double range = high > low ? high - low : 1;  // a constant channel is moved to 0 and not divided
  for (int64_t i = 0; i < pixels; ++i) out[i] = to_byte((share(rgb + 3 * i, channel) - low) / range * 255);
}

SELECTIVE_SEARCH_CLONES
void copy_channel(const uint8_t* rgb, int64_t pixels, int channel, uint8_t* out) {
  for (int64_t i = 0; i < pixels; ++i) out[i] = rgb[3 * i + channel];
}

bool single_channel(ColorSpace space) {
  return space == ColorSpace::h || space == ColorSpace::intensity || space == ColorSpace::opencv_h ||
         space == ColorSpace::opencv_intensity;
}

}  // namespace

void convert(const RgbView& image, ColorSpace space, Planes& planes) {
  static const std::array<double, 256> linear = linear_table();
  const uint8_t* rgb = image.data;
  const int64_t pixels = image.pixels();
  planes.height = image.height;
  planes.width = image.width;
  planes.channels = single_channel(space) ? 1 : 3;
  planes.copies = space == ColorSpace::h || space == ColorSpace::intensity ? 3 : 1;
  planes.data.resize(planes.channels * pixels);
  uint8_t* first = planes.channel(0);
  uint8_t* second = first + pixels;
  uint8_t* third = second + pixels;
  switch (space) {
    case ColorSpace::hsv:
      return convert_hsv(rgb, pixels, 255, first, second, third);
    case ColorSpace::opencv_hsv:
      return convert_hsv(rgb, pixels, 180, first, second, third);
    case ColorSpace::lab:
      return convert_lab(rgb, pixels, linear.data(), kLabD50, first, second, third);
    case ColorSpace::opencv_lab:
      return convert_lab(rgb, pixels, linear.data(), kLabD65, first, second, third);
    case ColorSpace::h:
      return convert_hue(rgb, pixels, 255, first);
    case ColorSpace::opencv_h:
      return convert_hue(rgb, pixels, 180, first);
    case ColorSpace::intensity:
    case ColorSpace::opencv_intensity:
      return convert_grey(rgb, pixels, first);
    case ColorSpace::rgi:
      convert_share(rgb, pixels, 0, first);
      convert_share(rgb, pixels, 1, second);
      return convert_grey(rgb, pixels, third);
    case ColorSpace::opencv_rgi:
      copy_channel(rgb, pixels, 0, first);
      copy_channel(rgb, pixels, 1, second);
      return convert_grey(rgb, pixels, third);
    case ColorSpace::rgb:
      copy_channel(rgb, pixels, 0, first);
      copy_channel(rgb, pixels, 1, second);
      return copy_channel(rgb, pixels, 2, third);
  }
}

}  // namespace detector::selective_search
