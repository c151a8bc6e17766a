// The gradients behind the texture similarity (Uijlings et al. 2013, section 3.2.2).
#pragma once

#include "image.h"

namespace detector::selective_search {

constexpr int kTextureAxes = 4;                           // x, y and the two diagonals
constexpr int kTextureBins = 10;                          // of each half-wave rectified map
constexpr int kSignedTextureBins = 2 * kTextureBins - 1;  // both halves of an axis: -9..9
constexpr int kTextureMaps = 2 * kTextureAxes;            // each axis gives a rising and a falling map

// Fills `bins`, kTextureAxes planes of the channel's size, with the quantised gradient along each axis:
// 0..18, where 9 is no gradient.
//
// Axis maps: Gaussian derivative, sigma 0.8, nine sampled taps, clamped borders. Diagonal maps: recursive
// Gaussian (Young and van Vliet) and central differences, rotated by 45 and 135 degrees. A response g on
// values in [0, 1] falls into bin round(9 |g| / 0.43), at most 9, of the map of its sign.
void texture_bins(const uint8_t* channel, int height, int width, Buffer<double>& scratch, uint8_t* bins);

}  // namespace detector::selective_search
