// Which columns (or block columns) of an operand some entry needs, and where each is packed.
#pragma once

#include "workspace.h"

namespace sparse_ft {
namespace {

struct Used {
  int32_t* slot;    // [size] column -> where it is packed, -1: nowhere
  int32_t* column;  // [count] the reverse
  int64_t count;

  static int64_t bytes(int64_t size) { return 2 * Pieces::bytes<int32_t>(size); }
  Used(Pieces& from, int64_t size) : slot(from.cut<int32_t>(size)), column(from.cut<int32_t>(size)), count(0) {
    memset(slot, 0xff, size * sizeof(int32_t));
  }

  void mark(int64_t c) { slot[c] = 0; }
  void collect(int64_t size) {
    for (int64_t c = 0; c < size; ++c) {
      if (slot[c] < 0) continue;
      slot[c] = static_cast<int32_t>(count);
      column[count++] = static_cast<int32_t>(c);
    }
  }
};

}  // namespace
}  // namespace sparse_ft
