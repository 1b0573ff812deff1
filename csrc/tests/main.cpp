#include <cstdio>
#include <cstring>

#include "harness.h"

namespace fastviz {
namespace test {
namespace {

int failures = 0;
constexpr int most_printed = 20;

}  // namespace

void report(const char* file, int line, const std::string& what) {
  if (++failures <= most_printed) {
    std::fprintf(stderr, "%s:%d: failed: %s\n    with %s\n", file, line, what.c_str(), context().c_str());
  }
}

}  // namespace test
}  // namespace fastviz

/// Runs the tests whose names contain one of the arguments; all if there is none.
int main(int count, char** arguments) {
  using namespace fastviz::test;
  int ran = 0;
  for (const Test& test : tests()) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted = wanted || std::strstr(test.name, arguments[i]);
    if (!wanted) continue;
    ++ran;
    const int before = failures;
    context().clear();
    test.run();
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.name);
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed checks\n", ran, failures);
  return failures > 0 || ran == 0;
}
