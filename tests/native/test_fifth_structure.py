"""A structure costs one file in C++ and its line in the table.

Here diagonals are added to a copy of the sources, and every op that takes a layout runs on them.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CXX = shutil.which("g++") or shutil.which("clang++")
DIAGONALS = """
// Wrapped diagonals. index: [D] of how far right of its row each begins. values: [D, rows].
#pragma once

#include "base.h"

namespace sparse_ft {
namespace {

struct DiagonalsOfMatrix : AnyStructure {
  static constexpr const char* kName = "diagonals";
  static constexpr bool kScattered = true;

  SFT_HD int64_t count(const Layout& layout) { return layout.n * layout.rows; }
  SFT_HD int64_t row_length(const Layout& layout) { return layout.rows; }
  SFT_HD void start_row(const Layout& layout, int64_t row, Cursor& at) {
    at.outer = row;
    at.base = index_at(layout, row);
  }
  SFT_HD void next_row(const Layout& layout, Cursor& at) { start_row(layout, at.outer + 1, at); }
  SFT_HD int64_t position(const Layout& layout, const Cursor& at) {
    return at.inner * layout.columns + (at.inner + at.base) % layout.columns;
  }
  SFT_HD bool in_one_run(const Layout&, const Cursor&, int64_t) { return false; }

  template <class Index>
  static bool names_inside(const Layout& layout, const Index* index) {
    return all_inside(index, layout.n, 0, layout.columns);
  }

  template <class Index, class Visitor>
  static void walk(const Layout& layout, const Index* index, int64_t begin, int64_t end,
                   Visitor& visitor) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t row = k % layout.rows;
      const int64_t column = (row + static_cast<int64_t>(index[k / layout.rows])) % layout.columns;
      visitor.run(k, row * layout.columns + column, 1);
    }
  }
};

}  // namespace
}  // namespace sparse_ft
"""
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "csrc/cpu/ops.h"
#include "csrc/cuda/gather_thread.h"
#include "views.h"

using namespace sparse_ft;

void expect(bool holds, const char* what, int64_t k) {
  if (holds) return;
  fprintf(stderr, "wrong: %s, value %d\\n", what, static_cast<int>(k));
  exit(2);
}

int main() {
  constexpr int64_t rows = 7, columns = 5, tokens = 9, count = 2 * rows;
  int64_t index[] = {1, 4};
  float matrix[rows * columns], values[count] = {}, copy[count] = {}, sums[count];
  float grad_output[tokens * rows], input[tokens * columns], moments[2 * count] = {};
  for (int64_t i = 0; i < rows * columns; ++i) matrix[i] = i;
  for (int64_t i = 0; i < tokens * rows; ++i) grad_output[i] = i * 7 % 9 - 4;
  for (int64_t i = 0; i < tokens * columns; ++i) input[i] = i * 5 % 7 - 3;
  const auto place = [&](int64_t k) {
    const int64_t row = k % rows;
    return row * columns + (row + index[k / rows]) % columns;
  };
  const Selection where{kDiagonals, view(index, kInt64, {2}), 1, 1};
  const Tensor whole = view(matrix, kFloat32, {rows, columns});
  const Tensor some = view(values, kFloat32, {count});

  baseline::gather_selected(whole, where, some, 0, 1);
  for (int64_t k = 0; k < count; ++k) expect(values[k] == place(k), "gather", k);

  const Layout layout{kDiagonals, index, 64, 2, 1, 1, rows, columns, 0};
  for (int64_t thread = 0; thread < kGatherThreads; ++thread)
    gather_thread(matrix, layout, copy, count, 1, 0, thread);
  for (int64_t k = 0; k < count; ++k) expect(copy[k] == place(k), "a thread of CUDA's gather", k);

  for (int64_t k = 0; k < count; ++k) values[k] = -k;
  baseline::scatter_selected_(whole, where, some, kCopy, 1);
  for (int64_t k = 0; k < count; ++k) expect(matrix[place(k)] == -k, "scatter", k);

  const Tensor a = view(grad_output, kFloat32, {tokens, rows});
  const Tensor b = view(input, kFloat32, {tokens, columns});
  baseline::selected_wgrad(a, b, where, view(sums, kFloat32, {count}), false, 1);
  for (int64_t k = 0; k < count; ++k) {
    float want = 0;
    for (int64_t t = 0; t < tokens; ++t)
      want += grad_output[t * rows + place(k) / columns] * input[t * columns + place(k) % columns];
    expect(sums[k] == want, "wgrad", k);
  }

  float step = 0;
  AdamWTensor t{};
  t.values = values, t.grad = sums, t.exp_avg = moments, t.exp_avg_sq = moments + count;
  t.step = &step, t.count = count, t.weight = matrix, t.layout = layout;
  t.lr = 0.1, t.beta1 = 0.9, t.beta2 = 0.99, t.eps = 1e-8;
  expect(!step_on_cpu({t}, false, 1.0, 1) && step == 1, "step", 0);
  for (int64_t k = 0; k < count; ++k) expect(matrix[place(k)] == values[k], "write-through", k);

  index[1] = columns;
  try {
    baseline::gather_selected(whole, where, some, 0, 1);
    expect(false, "an index outside was followed", 0);
  } catch (const std::out_of_range& error) {
    puts(error.what());
  }
}
"""
SOURCES = (
    "adamw_tensor.cpp",
    "checks.cpp",
    "cpu/gather_selected.cpp",
    "cpu/masked_adamw.cpp",
    "cpu/parallel.cpp",
    "cpu/scatter_selected.cpp",
    "cpu/selected_wgrad.cpp",
)


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_diagonals_are_a_file_and_a_line(tmp_path):
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    shutil.copy(ROOT / "tests" / "native" / "views.h", tmp_path / "views.h")
    views = (tmp_path / "views.h").read_text()
    (tmp_path / "views.h").write_text(views.replace("../../csrc", "csrc"))
    (csrc / "structures" / "diagonals.h").write_text(DIAGONALS)
    table = (csrc / "layout.h").read_text()
    included = '#include "structures/entries.h"\n'
    row = "  structure(Entries)              \\\n"
    assert table.count(included) == table.count(row) == 1
    table = table.replace(included, '#include "structures/diagonals.h"\n' + included)
    (csrc / "layout.h").write_text(table.replace(row, "  structure(Diagonals) \\\n" + row))
    (tmp_path / "program.cpp").write_text(PROGRAM)
    sources = [str(csrc / name) for name in SOURCES]
    flags = "-std=c++17", "-O0", "-Wno-psabi", "-fno-strict-aliasing", "-DSFT_VARIANT=baseline"
    program = tmp_path / "program"
    subprocess.run(
        [CXX, *flags, *sources, str(tmp_path / "program.cpp"), "-o", program, "-ldl", "-lpthread"],
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "it names diagonals that a matrix of shape (7, 5) does not have" in done.stdout
