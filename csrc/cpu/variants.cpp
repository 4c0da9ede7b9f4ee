#include "variants.h"

#include <atomic>
#include <stdexcept>

namespace sparse_ft {
namespace {

struct Variant {
  const char* name;
  bool (*supported)();
  CpuOps ops;
};

#define SFT_NAME(result, name, ...) name,
#define SFT_OPS(variant)            \
  [] {                              \
    using namespace variant;        \
    return CpuOps{SFT_CPU_OPS(SFT_NAME)}; \
  }()

const Variant kVariants[] = {
#ifdef SFT_HAVE_AVX512
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     },
     SFT_OPS(avx512)},
#endif
#ifdef SFT_HAVE_AVX2
    // F16C came before AVX2 in every processor that has both; older compilers do not know its name here.
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, SFT_OPS(avx2)},
#endif
    {"baseline", [] { return true; }, SFT_OPS(baseline)},
};

const Variant& best() {
  for (const Variant& variant : kVariants)
    if (variant.supported()) return variant;
  throw std::logic_error("the baseline always runs");
}

std::atomic<const Variant*>& chosen() {
  static std::atomic<const Variant*> variant{&best()};
  return variant;
}

}  // namespace

const CpuOps& cpu_ops() { return chosen().load(std::memory_order_relaxed)->ops; }

std::string cpu_variant() { return chosen().load()->name; }

std::vector<std::string> cpu_variants() {
  std::vector<std::string> names;
  for (const Variant& variant : kVariants)
    if (variant.supported()) names.emplace_back(variant.name);
  return names;
}

void set_cpu_variant(const std::string& name) {
  for (const Variant& variant : kVariants)
    if (name == variant.name && variant.supported()) return chosen().store(&variant);
  throw std::invalid_argument("set_cpu_variant: '" + name + "' is not a variant that this build holds and this machine runs");
}

}  // namespace sparse_ft
