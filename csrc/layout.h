// Where entry k of `values` sits in the matrix, for every structure. Shared by host and device.
#pragma once

#include "structures/all.h"
#include "structures/blocks.h"
#include "structures/columns.h"
#include "structures/entries.h"
#include "structures/rows.h"

namespace sparse_ft {

// The table of structures, one line each.
#define SFT_STRUCTURES(structure) \
  structure(Rows)                 \
  structure(Columns)              \
  structure(Blocks)               \
  structure(Entries)              \
  structure(All)

#define SFT_KIND(Name) k##Name,
enum Kind : int { SFT_STRUCTURES(SFT_KIND) };  // kRows, kColumns, …
#define SFT_KIND_NAME(Name) Name##OfMatrix::kName,
constexpr const char* kKindNames[] = {SFT_STRUCTURES(SFT_KIND_NAME)};

// A set of kinds, one bit each.
#define SFT_FLAT(Name) | Name##OfMatrix::kFlat << k##Name
#define SFT_LISTED(Name) | Name##OfMatrix::kListed << k##Name
#define SFT_SCATTERED(Name) | Name##OfMatrix::kScattered << k##Name
#define SFT_PAIRS(Name) | Name##OfMatrix::kPairs << k##Name
constexpr int kFlatKinds = 0 SFT_STRUCTURES(SFT_FLAT);
constexpr int kListedKinds = 0 SFT_STRUCTURES(SFT_LISTED);
constexpr int kScatteredKinds = 0 SFT_STRUCTURES(SFT_SCATTERED);
constexpr int kPairKinds = 0 SFT_STRUCTURES(SFT_PAIRS);
SFT_HD bool is_flat(Kind kind) { return kFlatKinds >> kind & 1; }
SFT_HD bool is_listed(Kind kind) { return kListedKinds >> kind & 1; }
SFT_HD bool is_scattered(Kind kind) { return kScatteredKinds >> kind & 1; }
SFT_HD bool has_pairs(Kind kind) { return kPairKinds >> kind & 1; }

// Runs SFT_CASE(Name) for the structure of a kind, which returns. A switch and no lambda: nvcc takes the
// body of a lambda for the host's where a constant expression could call it.
#define SFT_SWITCH(kind) switch (kind) { SFT_STRUCTURES(SFT_CASE) }

SFT_HD int64_t values_count(const Layout& layout) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::count(layout);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
  return 0;
}

SFT_HD int64_t row_length(const Layout& layout) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::row_length(layout);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
  return 1;
}

SFT_HD void start_row(const Layout& layout, int64_t row, Cursor& at) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::start_row(layout, row, at);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
}

SFT_HD void next_row(const Layout& layout, Cursor& at) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::next_row(layout, at);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
}

SFT_HD Cursor cursor_at(const Layout& layout, int64_t k) {
  Cursor at{0, 0, 0, k, 0};
  if (is_flat(layout.kind)) return at;
  const int64_t length = row_length(layout);
  const int64_t row = k / length;
  at.inner = k - row * length;
  start_row(layout, row, at);
  return at;
}

// To the next entry, which there must be.
SFT_HD void advance(const Layout& layout, Cursor& at) {
  ++at.inner;
  if (is_flat(layout.kind) || at.inner < row_length(layout)) return;
  at.inner = 0;
  next_row(layout, at);
}

// In the matrix, counted row-major; kPadding for the part of an edge block that hangs over.
SFT_HD int64_t position(const Layout& layout, const Cursor& at) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::position(layout, at);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
  return kPadding;
}

// Of entry k of values.
SFT_HD int64_t position(const Layout& layout, int64_t k) {
  return position(layout, cursor_at(layout, k));
}

SFT_HD bool in_one_run(const Layout& layout, const Cursor& at, int64_t count) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::in_one_run(layout, at, count);
  SFT_SWITCH(layout.kind)
#undef SFT_CASE
  return false;
}

// f(index) with the index in its own type.
template <class F>
static inline auto with_index(const Layout& layout, F&& f) {
  return layout.index_bits == 64 ? f(static_cast<const int64_t*>(layout.index))
                                 : f(static_cast<const int32_t*>(layout.index));
}

// Whether the index names rows, columns, blocks or entries that the matrix has. An index can be edited
// after it was checked, and what is walked without a look at it writes anywhere. Visitors look at single
// entries as they come to them: another pass over many takes a quarter of the time of a gather. Of all
// else there are few, and the caller looks at them.
static inline bool inside(const Layout& layout) {
  return with_index(layout, [&](auto index) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::names_inside(layout, index);
    SFT_SWITCH(layout.kind)
#undef SFT_CASE
    return false;
  });
}

// Entries [begin, end) of values in order, in pieces as long as the structure allows: `position` without
// a division for each entry.
template <class Visitor>
static inline void walk(const Layout& layout, int64_t begin, int64_t end, Visitor&& visitor) {
  if (begin >= end) return;
  with_index(layout, [&](auto index) {
#define SFT_CASE(Name) case k##Name: return Name##OfMatrix::walk(layout, index, begin, end, visitor);
    SFT_SWITCH(layout.kind)
#undef SFT_CASE
  });
}

}  // namespace sparse_ft
