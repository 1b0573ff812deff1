#include "instructions.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fastviz {

Instructions processor_instructions() {
#ifdef FASTVIZ_X86
  if (__builtin_cpu_supports("x86-64-v4")) return Instructions::avx512;
  if (__builtin_cpu_supports("x86-64-v3")) return Instructions::avx2;
#endif
  return Instructions::baseline;
}

namespace {

/// What FASTVIZ_CPU allows; a word that it does not know allows all.
Instructions allowed_instructions() {
  const char* word = std::getenv("FASTVIZ_CPU");
  if (word && std::strcmp(word, "baseline") == 0) return Instructions::baseline;
  if (word && std::strcmp(word, "avx2") == 0) return Instructions::avx2;
  return Instructions::avx512;
}

}  // namespace

Instructions instructions() {
  static const Instructions chosen = std::min(processor_instructions(), allowed_instructions());
  return chosen;
}

}  // namespace fastviz
