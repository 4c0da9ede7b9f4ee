#include "pages.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#endif

namespace sparse_ft {

#ifdef __linux__
namespace {

constexpr uintptr_t kSmall = 4096, kHuge = uintptr_t{2} << 20;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, unknown to older headers

uintptr_t smaller(uintptr_t a, uintptr_t b) { return a < b ? a : b; }
uintptr_t larger(uintptr_t a, uintptr_t b) { return a > b ? a : b; }

// MADV_COLLAPSE does not ask for this setting itself.
bool switched_off() {
  FILE* file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
  if (!file) return true;
  char text[64] = "";
  const bool read = fgets(text, sizeof text, file) != nullptr;
  fclose(file);
  return !read || strstr(text, "[never]");
}

// Whether [begin, end) is memory of this process alone and of no file.
bool is_anonymous(uintptr_t begin, uintptr_t end) {
  FILE* file = fopen("/proc/self/maps", "r");
  if (!file) return false;
  uintptr_t known = 0;
  char line[4352];  // a path has at most 4096
  while (known < end - begin && fgets(line, sizeof line, file)) {
    unsigned long from = 0, to = 0, inode = 0;
    char permissions[8] = "";
    if (sscanf(line, "%lx-%lx %7s %*x %*x:%*x %lu", &from, &to, permissions, &inode) != 4) break;
    const uintptr_t first = larger(from, begin), last = smaller(to, end);
    if (first >= last) continue;
    if (permissions[3] != 'p' || inode) break;
    known += last - first;
  }
  fclose(file);
  return known == end - begin;
}

bool is_resident(uintptr_t begin) {
  unsigned char pages[kHuge / kSmall];
  if (mincore(reinterpret_cast<void*>(begin), kHuge, pages)) return false;
  for (unsigned char page : pages)
    if (!(page & 1)) return false;
  return true;
}

}  // namespace

int64_t use_huge_pages(void* data, int64_t bytes) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + kHuge - 1) / kHuge * kHuge, last = (start + static_cast<uintptr_t>(bytes)) / kHuge * kHuge;
  if (first >= last || sysconf(_SC_PAGESIZE) != static_cast<long>(kSmall) || switched_off() || !is_anonymous(first, last)) return 0;
  int64_t done = 0;
  for (uintptr_t begin = first, end = first; begin < last; begin = end + kHuge) {  // one call a run: each drains every processor's lists
    for (end = begin; end < last && is_resident(end);) end += kHuge;
    if (end > begin && !madvise(reinterpret_cast<void*>(begin), end - begin, kCollapse)) done += static_cast<int64_t>(end - begin);
  }
  return done;
}
#else
int64_t use_huge_pages(void*, int64_t) { return 0; }
#endif

}  // namespace sparse_ft
