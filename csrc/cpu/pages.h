// Larger pages for memory whose entries are visited far apart: each visit needs the translation of another page, and 2 MiB a page keep
// them all within the processor's reach.
#pragma once

#include <cstdint>

namespace sparse_ft {

// Moves the whole 2 MiB ranges inside of [data, data + bytes) into pages of that size, where Linux can (6.1 and later, transparent huge
// pages not switched off). Contents and addresses stay; nothing is allocated that was not resident. Memory that is shared or belongs to a
// file is left alone. Returns the bytes that lie in huge pages now.
int64_t use_huge_pages(void* data, int64_t bytes);

}  // namespace sparse_ft
