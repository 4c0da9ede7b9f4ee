// The order in which the dot products of single entries are worked: by unit of rows, in it by block of columns, in it by row.
// A block of packed columns stays in a near cache while the rows of a unit pass by, and what belongs to the entries (where their
// column is packed, their sum) is read and written in sequence.
#pragma once

#include "simd.h"
#include "used.h"
#include "../layout.h"
#include "workspace.h"

namespace sparse_ft {
namespace {

// Calls on_entry(k, column) for all entries, and on_row(row) wherever a row begins: sorted entries seldom cost a division.
template <class Index, class OnRow, class OnEntry>
void for_each_entry(const Layout& layout, OnRow&& on_row, OnEntry&& on_entry) {
  const Index* index = static_cast<const Index*>(layout.index);
  const uint64_t columns = layout.columns;
  int64_t row_begin = -layout.columns;
  for (int64_t k = 0; k < layout.n; ++k) {
    uint64_t column = index[k] - row_begin;
    if (column >= columns) {
      const int64_t row = index[k] / layout.columns;
      row_begin = row * layout.columns;
      column = index[k] - row_begin;
      on_row(row);
    }
    on_entry(k, static_cast<int64_t>(column));
  }
}

template <class OnRow, class OnEntry>
void for_each_entry(const Layout& layout, OnRow&& on_row, OnEntry&& on_entry) {
  layout.index_bits == 64 ? for_each_entry<int64_t>(layout, on_row, on_entry) : for_each_entry<int32_t>(layout, on_row, on_entry);
}

// Rows and columns are packed in groups of neighbours, as many as a vector has lanes, wherever one of them is needed.
template <int Group>
struct EntryOrder {
  struct Place {
    int32_t block, slot;  // the slot counts within the block
  };

  const Layout& layout;
  int64_t unit_rows, block_columns;
  Used rows, columns;     // groups
  int64_t units, blocks;
  Place* places;          // [columns]
  int32_t* counts;        // [units, blocks, unit_rows] entries
  int64_t* starts;        // [units * blocks + 1] of slots and sums, at multiples of Group
  int64_t* next;          // [units * blocks] scratch
  uint16_t* slots;        // [starts.back()]

  static int64_t map_bytes(const Layout& layout) {
    return Used::bytes(divide_up(layout.rows, Group)) + Used::bytes(divide_up(layout.columns, Group));
  }

  // unit_rows and block_columns are multiples of Group; a slot has 16 bits.
  EntryOrder(const Layout& layout, int64_t unit_rows, int64_t block_columns, Pieces& maps)
      : layout(layout), unit_rows(unit_rows), block_columns(block_columns),
        rows(maps, divide_up(layout.rows, Group)), columns(maps, divide_up(layout.columns, Group)) {
    for_each_entry(
        layout, [&](int64_t row) { rows.mark(row / Group); }, [&](int64_t, int64_t column) { columns.mark(column / Group); });
    rows.collect(divide_up(layout.rows, Group));
    columns.collect(divide_up(layout.columns, Group));
    units = divide_up(rows.count * Group, unit_rows);
    blocks = divide_up(columns.count * Group, block_columns);
  }

  int64_t most_slots() const { return layout.n + units * blocks * (Group - 1); }
  int64_t bytes() const {
    return Pieces::bytes<Place>(layout.columns) + Pieces::bytes<int32_t>(units * blocks * unit_rows) +
           2 * Pieces::bytes<int64_t>(units * blocks + 1) + Pieces::bytes<uint16_t>(most_slots());
  }

  void sort(Pieces from) {
    places = from.cut<Place>(layout.columns);
    counts = from.cut<int32_t>(units * blocks * unit_rows);
    starts = from.cut<int64_t>(units * blocks + 1);
    next = from.cut<int64_t>(units * blocks + 1);
    slots = from.cut<uint16_t>(most_slots());
    for (int64_t i = 0; i < columns.count; ++i)
      for (int64_t c = 0; c < smaller(Group, layout.columns - columns.column[i] * Group); ++c) {
        const int64_t slot = i * Group + c;
        places[columns.column[i] * Group + c] = Place{static_cast<int32_t>(slot / block_columns),
                                                      static_cast<int32_t>(slot % block_columns)};
      }
    memset(counts, 0, units * blocks * unit_rows * sizeof *counts);
    int32_t* of_row = nullptr;
    for_each_entry(
        layout, [&](int64_t row) { of_row = counts + row_slot(row) / unit_rows * blocks * unit_rows + row_slot(row) % unit_rows; },
        [&](int64_t, int64_t column) { ++of_row[places[column].block * unit_rows]; });
    starts[0] = 0;
    for (int64_t i = 0; i < units * blocks; ++i) {
      int64_t count = 0;
      for (int64_t r = 0; r < unit_rows; ++r) count += counts[i * unit_rows + r];
      starts[i + 1] = starts[i] + round_up(count, Group);
      for (int64_t k = starts[i] + count; k < starts[i + 1]; ++k) slots[k] = 0;
    }
    for_each_place([&](int64_t, int64_t at, int64_t slot) { slots[at] = static_cast<uint16_t>(slot); });
  }

  int64_t row_slot(int64_t row) const { return rows.slot[row / Group] * static_cast<int64_t>(Group) + row % Group; }

  // Calls f(k, where entry k stands in the order, its slot) for all entries: within a row and a block they keep their order.
  template <class F>
  void for_each_place(F&& f) const {
    memcpy(next, starts, units * blocks * sizeof *next);
    int64_t* of_unit = nullptr;
    for_each_entry(
        layout, [&](int64_t row) { of_unit = next + row_slot(row) / unit_rows * blocks; },
        [&](int64_t k, int64_t column) { f(k, of_unit[places[column].block]++, places[column].slot); });
  }
};

}  // namespace
}  // namespace sparse_ft
