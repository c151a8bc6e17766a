// Enums that Python names. Each is declared once, here in C++: Python asks the operator `enum_names`
// (enums.cpp) for the names of the values, in the order of their numbers.

#pragma once

#include <cstdint>

namespace detector {

constexpr int64_t count_in(const char* names) {
  int64_t count = 1;
  for (; *names != 0; ++names) count += *names == ',';
  return count;
}

}  // namespace detector

// Declares an enum with the values 0, 1, 2, ... and two functions that take any value of it: names_of returns
// all names, joined by ", ", and count_of their number. Comments between the values do not count as names.
#define DETECTOR_ENUM(Name, ...)               \
  enum class Name : int64_t { __VA_ARGS__ };   \
  constexpr const char* names_of(Name) {       \
    return #__VA_ARGS__;                       \
  }                                            \
  constexpr int64_t count_of(Name) {           \
    return ::detector::count_in(#__VA_ARGS__); \
  }
