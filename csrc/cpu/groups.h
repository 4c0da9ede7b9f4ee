// Groups of values that are a product of their own, for every structure: what the panel kernels ask of one (structures/base.h).
#pragma once

#include "../layout.h"

namespace sparse_ft {
namespace {

#define SFT_HAS_PANELS(Name) | Name##OfMatrix::kHasPanels << k##Name
#define SFT_BY_COLUMNS(Name) | Name##OfMatrix::kByColumns << k##Name
#define SFT_LINES(Name) | Name##OfMatrix::kLines << k##Name
#define SFT_TILES(Name) | Name##OfMatrix::kTiles << k##Name
#define SFT_PACKED_FROM(Name) Name##OfMatrix::kPackedFrom,
constexpr int kPanelKinds = 0 SFT_STRUCTURES(SFT_HAS_PANELS);
constexpr int kColumnKinds = 0 SFT_STRUCTURES(SFT_BY_COLUMNS);
constexpr int kLineKinds = 0 SFT_STRUCTURES(SFT_LINES);
constexpr int kTileKinds = 0 SFT_STRUCTURES(SFT_TILES);
constexpr int64_t kPackedFrom[] = {SFT_STRUCTURES(SFT_PACKED_FROM)};
constexpr int64_t kNeverPacked = AnyStructure::kPackedFrom;
inline bool has_panels(Kind kind) { return kPanelKinds >> kind & 1; }
inline bool is_by_columns(Kind kind) { return kColumnKinds >> kind & 1; }
inline bool has_lines(Kind kind) { return kLineKinds >> kind & 1; }
inline bool has_tiles(Kind kind) { return kTileKinds >> kind & 1; }

// f(Group) for each group, in order.
template <class F>
void for_each_group(const Layout& layout, F&& f) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::groups(layout, f);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
}

// Of a structure that has no other.
inline Group only_group(const Layout& layout) {
  Group only{};
  for_each_group(layout, [&](const Group& group) { only = group; });
  return only;
}

// How many rows or columns are chosen.
inline int64_t lines_of(const Layout& layout) {
  const Group group = only_group(layout);
  return is_by_columns(layout.kind) ? group.columns : group.rows;
}

inline int64_t row_of(const Layout& layout, int64_t first, int64_t m) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::row(layout, first, m);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
  return 0;
}

inline int64_t column_of(const Layout& layout, int64_t first, int64_t n) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::column(layout, first, n);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
  return 0;
}

inline Run run_at(const Layout& layout, int64_t first, int64_t m, int64_t n) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::run_at(layout, first, m, n);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
  return Run{};
}

}  // namespace
}  // namespace sparse_ft
