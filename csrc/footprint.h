// Where tensors lie and how, kept small: while it stays so, their addresses mean what they meant.
#pragma once

#include <vector>

#include "dlpack.h"
#include "trail.h"

namespace sparse_ft {

// Of some tensors, next to each other: a step comes to them when much else has been in the cache.
class Footprints {
 public:
  void add(const dlpack::View& view) {
    Footprint f{dlpack::data_of(view), extents_.size(), view.dim, dlpack::device_of(view),
                view.lanes, view.code, view.bits, false};
    for (int32_t d = 0; d < view.dim; ++d) {
      extents_.push_back({view.shape[d], view.strides[d]});
      f.is_empty |= !view.shape[d];
    }
    footprints_.push_back(f);
  }

  size_t count() const { return footprints_.size(); }

  // Whether tensor number i is this one.
  bool is_of(size_t i, const dlpack::View& view) const {
    return dlpack::data_of(view) == footprints_[i].data && lies_alike(i, view);
  }

  // Whether one walk through memory of that device meets the elements of both in their order.
  bool lies_alike(size_t i, const dlpack::View& view) const {
    const Footprint& f = footprints_[i];
    if (view.code != f.code || view.bits != f.bits || view.lanes != f.lanes) return false;
    if (view.dim != f.dim || dlpack::device_of(view) != f.device) return false;
    const Extent* const extents = extents_.data() + f.first_extent;
    for (int32_t d = 0; d < f.dim; ++d)  // few: a call of memcmp takes longer
      if (view.shape[d] != extents[d].size || view.strides[d] != extents[d].stride) return false;
    return true;
  }

  void note(Trail& trail) const {
    trail.note(footprints_.data(), footprints_.size() * sizeof(Footprint));
    trail.note(extents_.data(), extents_.size() * sizeof(Extent));
  }

  bool is_empty(size_t i) const { return footprints_[i].is_empty; }

 private:
  struct Extent {
    int64_t size, stride;
  };
  struct Footprint {
    const void* data;
    size_t first_extent;
    int32_t dim;
    Device device;
    uint16_t lanes;
    uint8_t code, bits;
    bool is_empty;
  };

  std::vector<Footprint> footprints_;
  std::vector<Extent> extents_;
};

}  // namespace sparse_ft
