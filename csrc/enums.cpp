// The operator that gives Python the names of the enums.

#include "pooling/pooling.h"
#include "selective_search/color.h"
#include "selective_search/similarity.h"

#include <torch/csrc/stable/library.h>

#include <string>

namespace detector {
namespace {

std::string enum_names(std::string name) {
  if (name == "Rule") return names_of(Rule{});
  if (name == "Reduction") return names_of(Reduction{});
  if (name == "ColorSpace") return names_of(selective_search::ColorSpace{});
  if (name == "Similarity") return names_of(selective_search::Similarity{});
  STD_TORCH_CHECK(false, "enum_names: there is no enum ", name);
}

STABLE_TORCH_LIBRARY_FRAGMENT(detector, m) {
  m.def("enum_names(str name) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(detector, CompositeExplicitAutograd, m) {
  m.impl("enum_names", TORCH_BOX(&enum_names));
}

}  // namespace
}  // namespace detector
