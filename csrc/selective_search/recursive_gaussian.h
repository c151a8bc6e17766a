// The recursive Gaussian of Young and van Vliet (Signal Processing 1995), for sigma under 3.556.
#pragma once

namespace detector::selective_search {

// Smooths a plane of `height` x `width` doubles in place, columns first, as if its border pixels went on
// without end (Triggs and Sdika, IEEE Transactions on Signal Processing 2006).
void recursive_gaussian(double* plane, int height, int width, double sigma);

}  // namespace detector::selective_search
