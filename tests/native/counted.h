// Heap buffers of exactly their size whose writes are counted, and layouts over them, for every_thread.cpp.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "views.h"

using namespace sparse_ft;

static std::map<const char*, int> writes;  // of each byte
static void on_write(const void* address, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) ++writes[static_cast<const char*>(address) + i];
}

namespace {

const char* planted = "";
bool plant(const char* name) { return !strcmp(planted, name); }

constexpr DType kCode = static_cast<DType>(-1);  // a byte; buffers of them begin as whatever
int64_t size_of(DType dtype) { return dtype == kCode ? 1 : dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

[[noreturn]] void fail(const char* what, long long k) {
  fprintf(stderr, "every_thread: %s, at %lld\n", what, k);
  exit(2);
}

// offset: entries by which the data begins after the start of an allocation, whose alignment is 16 bytes.
struct Buffer {
  DType dtype;
  int64_t count, offset;
  char* start;
  char* data;

  Buffer(DType dtype, int64_t count, int seed, bool positive = false, int64_t offset = 0)
      : dtype(dtype), count(count), offset(offset), start(static_cast<char*>(malloc((count + offset) * size_of(dtype)))),
        data(start + offset * size_of(dtype)) {
    for (int64_t i = 0; i < count; ++i) {
      if (dtype == kCode) data[i] = static_cast<char>(i * 37 + seed);
      const double x = ((i * 7919 + seed * 104729) % 2003) / 1000.0 - (positive ? -0.01 : 1.0);
      with_dtype(dtype, [&](auto t) { reinterpret_cast<decltype(t)*>(data)[i] = convert(x, Tag<decltype(t)>()); });
    }
  }
  Buffer(const Buffer& other) : Buffer(other.dtype, other.count, 0, false, other.offset) { memcpy(data, other.data, bytes()); }
  ~Buffer() { free(start); }

  int64_t bytes() const { return count * size_of(dtype); }
};

Tensor matrix_of(const Buffer& of, const Layout& layout) { return view(of.data, of.dtype, {layout.rows, layout.columns}); }
Tensor line_of(const Buffer& of) { return view(of.data, of.dtype, {of.count}); }

void expect_same(const Buffer& got, const Buffer& want, const char* what) {
  if (!memcmp(got.data, want.data, got.bytes())) return;
  for (int64_t i = 0; i < got.count; ++i)
    if (memcmp(got.data + i * size_of(got.dtype), want.data + i * size_of(got.dtype), size_of(got.dtype))) fail(what, i);
}

// Takes the writes to a buffer off the list; wanted(i): how often entry i should have been written.
template <class F>
void expect_writes(const Buffer& buffer, const char* what, F&& wanted) {
  for (int64_t i = 0; i < buffer.bytes(); ++i) {
    const auto found = writes.find(buffer.data + i);
    const int count = found == writes.end() ? 0 : found->second, want = wanted(i / size_of(buffer.dtype));
    if (count != want) {
      fprintf(stderr, "every_thread: %s written %d times instead of %d\n", what, count, want);
      exit(3);
    }
    if (count) writes.erase(found);
  }
}

// A layout with an index of exactly its size: every third row, column, block or entry and its neighbour, and the last.
struct Selected {
  Layout layout;
  void* index;

  Selected(Kind kind, int bits, int64_t rows, int64_t columns, int64_t block_h, int64_t block_w) : layout{}, index(nullptr) {
    const int64_t across = (columns + block_w - 1) / block_w, down = (rows + block_h - 1) / block_h;
    const int64_t counts[] = {rows, columns, down * across, rows * columns, 0};
    const int64_t all = counts[kind];
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < all; ++i) {
      if (i % 4 > 1 && i != all - 1) continue;
      if (kind == kBlocks) chosen.push_back(i / across);
      chosen.push_back(kind == kBlocks ? i % across : i);
    }
    if (plant("bounds")) chosen.back() = all;
    const int64_t n = static_cast<int64_t>(chosen.size());
    index = malloc(n * bits / 8);
    layout = Layout{kind, index, bits, kind == kBlocks ? n / 2 : n, block_h, block_w, rows, columns, 0};
    for (int64_t i = 0; i < n; ++i) {
      if (bits == 64) static_cast<int64_t*>(index)[i] = chosen[i];
      else static_cast<int32_t*>(index)[i] = static_cast<int32_t>(chosen[i]);
    }
  }
  ~Selected() { free(index); }
  Selected(const Selected&) = delete;

  std::vector<int> shown() const {  // how often each entry of the matrix is selected
    std::vector<int> count(layout.rows * layout.columns, 0);
    for (int64_t k = 0; k < values_count(layout); ++k)
      if (const int64_t at = position(layout, k); at != kPadding) ++count[at];
    return count;
  }
};

}  // namespace
