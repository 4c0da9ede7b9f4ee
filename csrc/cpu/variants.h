// The CPU kernels are compiled once for each instruction set; the best that this machine runs is chosen once.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace sparse_ft {

const CpuOps& cpu_ops();
std::string cpu_variant();
std::vector<std::string> cpu_variants();  // those that this build holds and this machine runs, best first
void set_cpu_variant(const std::string& name);  // for tests; std::invalid_argument when it is not one of the above

}  // namespace sparse_ft
